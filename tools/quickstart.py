"""The tour of tools/quickstart.sh, in one process: toy data, teacher, students, k-NN on held-out classes,
segmentation, detection.

    python tools/quickstart.py --data data/toy --out runs/quickstart

Every step is a run as the commands make it, done runs are kept, stopped ones go on.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tyro

from stillroom import cls_transfer, det_transfer, distill, eval_ssl, seg_transfer
from stillroom.backbone.command import plainly
from stillroom.backbone.schedule import Cosine
from stillroom.backbone.table import report
from stillroom.cls_transfer import presets as cls_presets
from stillroom.det_transfer import presets as det_presets
from stillroom.det_transfer.record import summary as det_summary
from stillroom.distill import presets as distill_presets
from stillroom.seg_transfer import presets as seg_presets
from stillroom.seg_transfer.record import summary as seg_summary

TOOLS = Path(__file__).parent
TASKS = ("heldout-shapes", "heldout-textures")
STUDENT = "cifar/resnet20"


@dataclass(frozen=True, kw_only=True)
class Tour:
    """Distil a small student on toy data and compare it with its teacher, a supervised twin and random weights."""

    data: Path = Path("data/toy")
    """Where the toy data set is, or is to be made."""
    out: Path = Path("runs/quickstart")
    """Folder of the runs."""
    images: int = 4800
    """Pictures to draw with labels, and as many without."""
    teacher_epochs: int = 2
    """Passes of the teacher over the labelled images."""
    epochs: int = 2
    """Passes of each student over the images."""
    segmentation_steps: int = 100
    """Steps of each linear probe of pixels."""
    detection_steps: int = 50
    """Steps of each detector."""


def main_path(tour: Tour) -> None:
    """The tour, from nothing to the table."""
    began = time.perf_counter()

    def step(title: str) -> None:
        print(f"\n== {title} ({time.perf_counter() - began:.0f} s)", flush=True)

    data, out = tour.data, tour.out
    step("a toy world: textured shapes on textured grounds")
    if not (data / "dataset.json").exists():
        draw = [sys.executable, str(TOOLS / "make_toy_data.py"), "--out", str(data)]
        counts = ["--num-unlabelled", str(tour.images), "--num-train", str(tour.images)]
        subprocess.run([*draw, *counts], check=True)
    objects = {"train": data / "objects" / "train", "test": data / "objects" / "val"}

    step("a teacher, ResNet-18, trained on the labelled classes")
    teacher = cls_presets.scratch(checkpoint=("random:torchvision/resnet18",), out=out / "teacher")
    warm = Cosine(warmup_epochs=0.6)
    teacher = replace(
        teacher,
        **objects,
        held_out=0.0,
        size=48,
        crop_fraction=1.0,
        epochs=tour.teacher_epochs,
        batch_size=64,
        min_scale=0.7,
        schedule=warm,
    )
    once(teacher, cls_transfer.finetune, cls_transfer.resume)

    step("a student, ResNet-20 with 40 times fewer weights, distilled without labels")
    kdep = distill_presets.kdep(
        teacher=(str(out / "teacher" / "checkpoint"),), student=(STUDENT,), data=data / "unlabelled", out=out / "kdep"
    )
    kdep = replace(
        kdep,
        student=replace(kdep.student, size=(32,), crop_fraction=(1.0,)),
        view=distill.KdepView(min_scale=0.5),
        epochs=tour.epochs,
        batch_size=32,
        lr=0.1,
        loss_weight=10.0,
        schedule=Cosine(),
    )
    once(kdep, distill.distill, distill.resume)

    step("the same student, supervised: as many images seen, with labels")
    supervised = cls_presets.scratch(checkpoint=(f"random:{STUDENT}",), out=out / "supervised")
    supervised = replace(
        supervised,
        **objects,
        held_out=0.0,
        size=32,
        crop_fraction=1.0,
        epochs=tour.epochs,
        batch_size=32,
        min_scale=0.5,
    )
    once(supervised, cls_transfer.finetune, cls_transfer.resume)

    step("k-NN on classes that nobody has been taught")
    student = str(out / "kdep" / "student")
    nets = {
        "random ResNet-20": f"random:{STUDENT}",
        "supervised ResNet-20": str(out / "supervised" / "checkpoint"),
        "KDEP ResNet-20, no labels": student,
        "teacher ResNet-18": str(out / "teacher" / "checkpoint"),
    }
    rows = []
    for number, (label, net) in enumerate(nets.items()):
        runs = [out / f"knn-{number}-{task}" for task in TASKS]
        for run, task in zip(runs, TASKS, strict=True):
            folders = {"train": data / task / "train", "test": data / task / "val"}
            knn = eval_ssl.KnnConfig(checkpoint=(net,), **folders, out=run, figures=net == student)
            once(knn, eval_ssl.evaluate, None)
        rows.append(f"{label}={','.join(map(str, runs))}")
    print()
    subprocess.run([sys.executable, str(TOOLS / "table.py"), *rows, "--metric", "top1_k10"], check=True)
    step("which pixel shows which shape: a linear probe of frozen maps, random and the student's")
    print(probe_pixels(tour, student))
    step("where the shapes are: a detector on frozen maps, random and the student's")
    print(detect(tour, student))

    pictures = out / f"knn-{list(nets.values()).index(student)}-{TASKS[0]}" / "figures"
    print(f"\nWhat it takes for alike: {pictures}")
    print(f"The student: {student}  ({time.perf_counter() - began:.0f} s)")


def probe_pixels(tour: Tour, student: str) -> str:
    """Linear classifiers of the pixels of toy scenes, on frozen maps, random and a student's; their table."""
    segment = seg_presets.linear(checkpoint=("random", student), out=tour.out / "segmentation")
    segment = replace(
        segment,
        data=tour.data / "scenes",
        steps=tour.segmentation_steps,
        batch_size=8,
        crop=96,
        scale=(1.0, 1.0),
        rotate=0.0,
        blur=0.0,
        lr=0.05,
    )
    with (tour.out / "segmentation.log").open("w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        seg_transfer.finetune(segment)  # MMEngine says a lot
    return report(segment.out, seg_summary)


def detect(tour: Tour, student: str) -> str:
    """Faster R-CNN on frozen maps of toy scenes, random and a student's, by Detectron2 where it is; their table."""
    config = det_presets.faster_rcnn_fpn(checkpoint=("random", student), out=tour.out / "detection")
    config = replace(
        config,
        backend="torchvision" if find_spec("detectron2") is None else "detectron2",
        data=tour.data / "scenes",
        frozen=True,
        fpn_norm="gn",
        fpn_dim=32,
        box_dim=128,
        rois=32,
        anchor_scale=4.0,
        train_sizes=(96,),
        test_size=96,
        max_size=96,
        steps=tour.detection_steps,
        batch_size=8,
        warmup=20,
    )
    with (tour.out / "detection.log").open("w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        det_transfer.finetune(config)
    return report(config.out, det_summary)


def once(config: Any, start: Callable[[Any], Path], resume: Callable[[Path], Path] | None) -> None:
    """Start a run, go on with one that was stopped, keep one that is done."""
    if (config.out / "results.json").exists():
        print(f"{config.out} is done")
    elif resume is not None and (config.out / "config.json").exists():
        resume(config.out)
    else:
        start(config)


@plainly
def main() -> None:
    """Take the tour."""
    main_path(tyro.cli(Tour, description=__doc__))


if __name__ == "__main__":
    main()
