"""distill's training step against a plain loop."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from bench.config import Step
from stillroom.backbone import Backbone, build_backbone
from stillroom.backbone.flags import Amp
from stillroom.distill import DistillConfig, build_alignment
from stillroom.distill.distances import DistillationLoss
from stillroom.distill.nets import Net
from stillroom.distill.presets import simreg
from stillroom.distill.slots import Raw
from stillroom.distill.student import StudentModel, build_optimizer, build_student
from stillroom.distill.teacher import FrozenTeacher, build_teacher
from stillroom.runs.hardware import autocast, hold_weights


def figures(settings: Step) -> dict[str, Any]:
    """Images per second of both, the ratios of their seconds, and the largest difference of their losses."""
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    weights = torchvision.models.resnet50().eval(), torchvision.models.resnet18()
    plain = PlainLoop(*weights, device)
    ours = OurStep(plain, settings, device)
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {"reference": [], "ours": []}
    differences = []
    for step in range(settings.steps + 1):  # the first pair warms up and does not count
        images = torch.randint(0, 256, (settings.batch, 3, settings.size, settings.size), generator=generator).byte()
        images = images.to(device)
        ours.copy(plain)
        theirs, their_seconds = timed(plain.step, images)
        mine, my_seconds = timed(ours.step, images)
        if step:
            seconds["reference"].append(their_seconds)
            seconds["ours"].append(my_seconds)
            differences.append(abs(mine - theirs))
    with FlopCounterMode(display=False) as counter:
        ours.step(images)
    rate = settings.batch / statistics.median(seconds["ours"])
    return {
        "reference_images_per_second": settings.batch / statistics.median(seconds["reference"]),
        "ours_images_per_second": rate,
        "speedup": [a / b for a, b in zip(seconds["reference"], seconds["ours"], strict=True)],
        "largest_loss_difference": max(differences),
        "ours_tflops_per_second": counter.get_total_flops() * rate / settings.batch / 1e12,
    }


def timed(step: Callable[[Tensor], Tensor | float], images: Tensor) -> tuple[float, float]:
    """Loss and seconds of a step."""
    if images.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    loss = step(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return float(loss), time.perf_counter() - began


class PlainLoop:
    """A distillation loop as a first version would be."""

    def __init__(self, teacher: Any, student: Any, device: str) -> None:
        self.teacher, self.student = teacher.to(device), student.to(device)
        self.teacher.fc, self.student.fc = nn.Identity(), nn.Identity()
        d, wide, target = 512, 1024, 2048
        self.head = nn.Sequential(
            nn.Linear(d, wide),
            nn.BatchNorm1d(wide),
            nn.ReLU(),
            nn.Linear(wide, d),
            nn.Linear(d, wide),
            nn.BatchNorm1d(wide),
            nn.ReLU(),
            nn.Linear(wide, target),
        ).to(device)
        parameters = [*self.student.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-4)
        self.mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(1, 3, 1, 1)
        self.std = torch.tensor([0.229, 0.224, 0.225], device=device).view(1, 3, 1, 1)

    def step(self, images: Tensor) -> float:
        x = (images.float() / 255 - self.mean) / self.std
        with torch.no_grad():
            targets = normalize(self.teacher(x), dim=1)
        loss = (2 - 2 * (normalize(self.head(self.student(x)), dim=1) * targets).sum(dim=1)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class OurStep:
    """The body of distill's loop, fed by hand."""

    def __init__(self, plain: PlainLoop, settings: Step, device: str) -> None:
        nets = {"teacher": ("teacher",), "student": ("student",)}
        config: DistillConfig = simreg(**nets, data=Path(), out=Path())
        self.device: torch.device = torch.device(device)
        self.amp: Amp = "bf16" if settings.amp else "none"
        weights = {key: tensor for key, tensor in plain.teacher.state_dict().items() if not key.startswith("fc.")}
        backbone = build_backbone("torchvision/resnet50")
        backbone.net.load_state_dict(weights)
        net = Net(name="teacher", feature="after", size=settings.size)
        self.teacher: FrozenTeacher = build_teacher(net, backbone.cpu()).to(device)
        student: Backbone = build_backbone("torchvision/resnet18").to(memory_format=torch.channels_last)
        self.student: StudentModel = build_student(
            student, [self.teacher], [2048], head=config.head, dense=config.dense, seed=config.seed
        )
        self.student.to(device).train()
        self.optimizer = build_optimizer(
            config.optimizer, [self.student], lr=config.lr, weight_decay=config.weight_decay
        )
        self.target = build_alignment(Raw(), 2048, 2048)
        self.compute_loss = DistillationLoss(config.distance, config.loss_weight, config.dense, [1.0])
        held = hold_weights(self.teacher, self.amp, torch.device(device))
        self.run_teacher: Any = torch.compile(held) if settings.compile else held
        self.run_student: Any = torch.compile(self.student) if settings.compile else self.student

    def copy(self, plain: PlainLoop) -> None:
        """Copy the reference's weights."""
        state = {key: tensor for key, tensor in plain.student.state_dict().items() if not key.startswith("fc.")}
        self.student.backbone.net.load_state_dict(state)
        self.student.heads[0].load_state_dict(plain.head.state_dict())

    def step(self, images: Tensor) -> Tensor:
        with autocast(self.amp, self.device):
            features, outputs = self.run_teacher(images).features, [self.run_student(images)]
        loss = self.compute_loss(outputs, [[self.target(features)]], [()])
        loss.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.logged["loss"].detach()
