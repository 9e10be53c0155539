"""The benchmarks of distill: the step against a plain loop, the cached epoch against the live one."""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from stillroom.backbone import Backbone, build_backbone, read_results
from stillroom.distill import DistillConfig, Students, Teachers, build_alignment, distill
from stillroom.distill.config import Cache, Dense, Monitor, Net
from stillroom.distill.distances import DistillationLoss
from stillroom.distill.presets import simreg
from stillroom.distill.slots import CosineDistance, MlpHead, Raw
from stillroom.distill.student import StudentModel, build_optimizer, build_student
from stillroom.distill.teacher import FrozenTeacher, build_teacher


@dataclass(frozen=True)
class Step:
    """SimReg's step, ResNet-50 -> ResNet-18 with the 4-layer head, against a plain loop from the same weights.

    The reference is what a loop of its kind does: float32, contiguous, eager, the loss read back at every step.
    """

    batch: int = 32
    """Images per step."""
    size: int = 224
    """Input side of both nets, pixels."""
    steps: int = 10
    """Pairs of steps, interleaved; before each pair both students have the same weights."""
    amp: bool = False
    """Ours in bf16 autocast."""
    compile: bool = False
    """Ours compiled."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"

    def figures(self) -> dict[str, Any]:
        """Seconds of both, their ratio, and how far the losses are apart."""
        torch.manual_seed(0)
        weights = torchvision.models.resnet50().eval(), torchvision.models.resnet18()
        plain = PlainLoop(*weights, self.device)
        ours = OurStep(plain, self)
        generator = torch.Generator().manual_seed(0)
        seconds: dict[str, list[float]] = {"reference": [], "ours": []}
        apart = []
        for step in range(self.steps + 1):  # the first pair warms up and does not count
            images = torch.randint(0, 256, (self.batch, 3, self.size, self.size), generator=generator).byte()
            images = images.to(self.device)
            ours.copy(plain)
            theirs, their_seconds = self.timed(plain.step, images)
            mine, my_seconds = self.timed(ours.step, images)
            if step:
                seconds["reference"].append(their_seconds)
                seconds["ours"].append(my_seconds)
                apart.append(abs(mine - theirs))
        with FlopCounterMode(display=False) as counter:
            ours.step(images)
        rate = self.batch / statistics.median(seconds["ours"])
        return {
            "reference_images_per_second": self.batch / statistics.median(seconds["reference"]),
            "ours_images_per_second": rate,
            "speedup": [a / b for a, b in zip(seconds["reference"], seconds["ours"], strict=True)],
            "largest_loss_difference": max(apart),
            "ours_tflops_per_second": counter.get_total_flops() * rate / self.batch / 1e12,
        }

    def timed(self, step: Any, images: Tensor) -> tuple[float, float]:
        """A step's loss, and its seconds."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        loss = step(images)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return float(loss), time.perf_counter() - began


class PlainLoop:
    """A distillation loop as people write it first."""

    def __init__(self, teacher: Any, student: Any, device: str) -> None:
        self.teacher, self.student = teacher.to(device), student.to(device)
        self.teacher.fc, self.student.fc = nn.Identity(), nn.Identity()
        d, wide, target = 512, 1024, 2048
        self.head = nn.Sequential(
            nn.Linear(d, wide), nn.BatchNorm1d(wide), nn.ReLU(), nn.Linear(wide, d),
            nn.Linear(d, wide), nn.BatchNorm1d(wide), nn.ReLU(), nn.Linear(wide, target),
        ).to(device)  # fmt: skip
        parameters = [*self.student.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-4)
        self.mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(1, 3, 1, 1)
        self.std = torch.tensor([0.229, 0.224, 0.225], device=device).view(1, 3, 1, 1)

    def step(self, images: Tensor) -> float:
        x = (images.float() / 255 - self.mean) / self.std
        with torch.no_grad():
            wanted = normalize(self.teacher(x), dim=1)
        loss = (2 - 2 * (normalize(self.head(self.student(x)), dim=1) * wanted).sum(dim=1)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class OurStep:
    """The body of distill's loop, fed by hand."""

    def __init__(self, plain: PlainLoop, bench: Step) -> None:
        nets = {"teacher": ("teacher",), "student": ("student",)}
        config: DistillConfig = simreg(**nets, data=Path(), out=Path())
        self.bench = bench
        bare = {key: tensor for key, tensor in plain.teacher.state_dict().items() if not key.startswith("fc.")}
        own = build_backbone("torchvision/resnet50")
        own.net.load_state_dict(bare)
        net = Net(name="teacher", feature="after", size=bench.size)
        self.teacher: FrozenTeacher = build_teacher(net, own.cpu()).to(bench.device)
        student: Backbone = build_backbone("torchvision/resnet18").to(memory_format=torch.channels_last)
        self.student: StudentModel = build_student(
            student, [self.teacher], [2048], head=config.head, dense=config.dense, seed=config.seed
        )
        self.student.to(bench.device).train()
        self.optimizer = build_optimizer(
            config.optimizer, [self.student], lr=config.lr, weight_decay=config.weight_decay
        )
        self.target = build_alignment(Raw(), 2048, 2048)
        self.compute_loss = DistillationLoss(config.distance, config.loss_weight, config.dense, [1.0])
        self.run_teacher: Any = torch.compile(self.teacher) if bench.compile else self.teacher
        self.run_student: Any = torch.compile(self.student) if bench.compile else self.student

    def copy(self, plain: PlainLoop) -> None:
        """Take the reference's weights."""
        state = {key: tensor for key, tensor in plain.student.state_dict().items() if not key.startswith("fc.")}
        self.student.backbone.net.load_state_dict(state)
        self.student.heads[0].load_state_dict(plain.head.state_dict())

    def step(self, images: Tensor) -> Tensor:
        with torch.autocast(self.bench.device, torch.bfloat16, enabled=self.bench.amp):
            features, outputs = self.run_teacher(images).features, [self.run_student(images)]
        loss = self.compute_loss(outputs, [[self.target(features)]], [()])
        loss.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.logged["loss"].detach()


@dataclass(frozen=True)
class CachedEpoch:
    """An epoch with a filled cache against a live one, ResNet-50 -> ResNet-18, through the whole trainer."""

    images: int = 256
    """Generated images, 256 px, read from disk."""
    teacher_size: int = 224
    """Input side of the teacher, pixels."""
    student_size: int = 64
    """Input side of the student, pixels."""
    batch: int = 16
    """Images per step."""
    repeats: int = 3
    """Pairs of epochs, interleaved."""

    def figures(self) -> dict[str, Any]:
        """Seconds of both epochs, their ratio, and its ceiling: (teacher + student) / student of a step.

        The cached epochs are those of another student than the one that filled the cache.
        """
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            os.environ["STILLROOM_CACHE"] = str(root / "cache")
            write_images(root / "images", self.images)
            base = DistillConfig(
                teacher=Teachers(name=("random:torchvision/resnet50",), feature=("after",), size=(self.teacher_size,)),
                student=Students(name=("torchvision/resnet18",), feature=("after",), size=(self.student_size,)),
                data=root / "images", out=root / "fill", alignment=Raw(), head=MlpHead(), distance=CosineDistance(),
                epochs=1, batch_size=self.batch, lr=0.01, monitor=Monitor(held_out=0.0), log_every=1,
            )  # fmt: skip
            cached = replace(base, cache=Cache(views=1))
            first = replace(base.student, name=("torchvision/mobilenet_v2",))
            distill(replace(cached, student=first))
            seconds: dict[str, list[float]] = {"live": [], "cached": []}
            asked = {"live": 0, "cached": 0}
            for repeat in range(self.repeats):
                for name, config in (("live", base), ("cached", cached)):
                    with counted_teacher() as images:
                        out = distill(replace(config, out=root / f"{name}-{repeat}"))
                    seconds[name].append(read_results(out).seconds)
                    asked[name] += sum(images)
        return {
            "images_through_the_teacher": asked,
            "live_seconds": seconds["live"],
            "cached_seconds": seconds["cached"],
            "speedup": [live / own for live, own in zip(seconds["live"], seconds["cached"], strict=True)],
            "ceiling": self.ceiling(),
        }

    def ceiling(self) -> float:
        """(teacher + student) / student, seconds of a step without any reading of images."""
        config = simreg(teacher=("t",), student=("s",), data=Path(), out=Path())
        teacher = build_teacher(Net(name="random:torchvision/resnet50", feature="after", size=self.teacher_size))
        student = build_backbone("torchvision/resnet18").to(memory_format=torch.channels_last)
        model = build_student(student, [teacher], [2048], head=config.head, dense=Dense(), seed=0).train()
        compute_loss = DistillationLoss(config.distance, config.loss_weight, Dense(), [1.0])
        pixels = [torch.randint(0, 256, (self.batch, 3, s, s)).byte() for s in (self.teacher_size, self.student_size)]
        spent: list[tuple[float, float]] = []
        for _ in range(4):
            began = time.perf_counter()
            features = teacher(pixels[0]).features
            between = time.perf_counter()
            compute_loss([model(pixels[1])], [[features]], [()]).total.backward()
            spent.append((between - began, time.perf_counter() - between))
        ask, learn = (statistics.median(times) for times in zip(*spent[1:], strict=True))
        return (ask + learn) / learn


@dataclass(frozen=True)
class Monitored:
    """A run with the monitors at their defaults against the same run without, ResNet-20 at 32 px, cached teacher.

    Nothing else costs as little as such a step: the share of the monitors is then at its largest.
    """

    images: int = 3200
    """Generated images, 256 px."""
    epochs: int = 5
    """Passes: the default measures once in five."""
    repeats: int = 3
    """Pairs of runs, interleaved."""

    def figures(self) -> dict[str, Any]:
        """Seconds of both, the same images trained on, and the share that the monitors add."""
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            os.environ["STILLROOM_CACHE"] = str(root / "cache")
            write_images(root / "images", self.images)
            watched = DistillConfig(
                teacher=Teachers(name=("random:cifar/resnet20",), size=(32,)),
                student=Students(name=("cifar/resnet20",)), data=root / "images", out=root / "fill",
                epochs=self.epochs, batch_size=64, lr=0.01, cache=Cache(views=1),
            )  # fmt: skip
            alone = replace(watched, monitor=Monitor(held_out=0.0))
            seconds: dict[str, list[float]] = {"watched": [], "alone": []}
            for repeat in range(self.repeats + 1):  # the first pair fills the caches and does not count
                for name, config in (("watched", watched), ("alone", alone)):
                    results = read_results(distill(replace(config, out=root / f"{name}-{repeat}")))
                    if repeat:
                        seconds[name].append(results.seconds / results.extra["steps"])
        return {
            **{f"{name}_seconds_per_step": values for name, values in seconds.items()},
            "share": statistics.median(seconds["watched"]) / statistics.median(seconds["alone"]) - 1,
            "speedup": [b / a for a, b in zip(seconds["watched"], seconds["alone"], strict=True)],
        }


@contextlib.contextmanager
def counted_teacher() -> Iterator[list[int]]:
    """The images of each pass through a teacher inside this block."""
    passes: list[int] = []

    def count(module: nn.Module, given: tuple[Tensor, ...], _: Any) -> None:
        if isinstance(module, FrozenTeacher):
            passes.append(len(given[0]))

    handle = nn.modules.module.register_module_forward_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


def write_images(folder: Path, count: int) -> None:
    """JPEG files of smooth noise, 256 px."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{index:04d}.jpg", quality=90)
