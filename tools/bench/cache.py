"""An epoch with cached teacher outputs against a live one."""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.config import Cache
from bench.images import write_images
from stillroom.backbone import build_backbone
from stillroom.distill import DistillConfig, Students, Teachers, distill
from stillroom.distill.config import Cache as TeacherCache
from stillroom.distill.config import Dense, Monitor
from stillroom.distill.distances import DistillationLoss
from stillroom.distill.nets import Net
from stillroom.distill.presets import simreg
from stillroom.distill.slots import CosineDistance, MlpHead, Raw
from stillroom.distill.student import build_student
from stillroom.distill.teacher import FrozenTeacher, build_teacher
from stillroom.runs import read_results


def figures(settings: Cache) -> dict[str, Any]:
    """Seconds of both epochs, their ratio, and its ceiling: (teacher + student) / student of a step.

    The cached epochs are those of another student than the one that filled the cache.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["STILLROOM_CACHE"] = str(root / "cache")
        write_images(root / "images", settings.images)
        base = DistillConfig(
            teacher=Teachers(name=("random:torchvision/resnet50",), feature=("after",), size=(settings.teacher_size,)),
            student=Students(name=("torchvision/resnet18",), feature=("after",), size=(settings.student_size,)),
            data=root / "images",
            out=root / "fill",
            alignment=Raw(),
            head=MlpHead(),
            distance=CosineDistance(),
            epochs=1,
            batch_size=settings.batch,
            lr=0.01,
            monitor=Monitor(held_out=0.0),
            log_every=1,
        )
        cached = replace(base, cache=TeacherCache(views=1))
        first = replace(base.student, name=("torchvision/mobilenet_v2",))
        distill(replace(cached, student=first))
        seconds: dict[str, list[float]] = {"live": [], "cached": []}
        num_images = {"live": 0, "cached": 0}
        for repeat in range(settings.repeats):
            for name, config in (("live", base), ("cached", cached)):
                with counted_teacher() as images:
                    out = distill(replace(config, out=root / f"{name}-{repeat}"))
                seconds[name].append(read_results(out).seconds)
                num_images[name] += sum(images)
    return {
        "images_through_the_teacher": num_images,
        "live_seconds": seconds["live"],
        "cached_seconds": seconds["cached"],
        "speedup": [live / cached for live, cached in zip(seconds["live"], seconds["cached"], strict=True)],
        "ceiling": ceiling(settings),
    }


def ceiling(settings: Cache) -> float:
    """(teacher + student) / student, in seconds of a step that reads no images."""
    config = simreg(teacher=("t",), student=("s",), data=Path(), out=Path())
    teacher = build_teacher(Net(name="random:torchvision/resnet50", feature="after", size=settings.teacher_size))
    student = build_backbone("torchvision/resnet18").to(memory_format=torch.channels_last)
    model = build_student(student, [teacher], [2048], head=config.head, dense=Dense(), seed=0).train()
    compute_loss = DistillationLoss(config.distance, config.loss_weight, Dense(), [1.0])
    pixels = [
        torch.randint(0, 256, (settings.batch, 3, s, s)).byte() for s in (settings.teacher_size, settings.student_size)
    ]
    spent: list[tuple[float, float]] = []
    for _ in range(4):
        began = time.perf_counter()
        features = teacher(pixels[0]).features
        between = time.perf_counter()
        compute_loss([model(pixels[1])], [[features]], [()]).total.backward()
        spent.append((between - began, time.perf_counter() - between))
    teach, learn = (statistics.median(times) for times in zip(*spent[1:], strict=True))
    return (teach + learn) / learn


@contextlib.contextmanager
def counted_teacher() -> Iterator[list[int]]:
    """Count the images of each forward pass of a teacher inside this block."""
    passes: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        if isinstance(module, FrozenTeacher):
            passes.append(len(inputs[0]))

    handle = nn.modules.module.register_module_forward_hook(count)
    try:
        yield passes
    finally:
        handle.remove()
