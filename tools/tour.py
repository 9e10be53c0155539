"""The settings of the tour, and the nets it compares."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

NEIGHBOURS = 10
"""k of k-NN and of neighbour agreement."""


@dataclass(frozen=True, kw_only=True)
class Tour:
    """Distil a small student from a pretrained teacher without labels, and evaluate it."""

    images: Path | None = None
    """Folder of your own images, no labels needed; None: a toy world is drawn."""
    labelled: Path | None = None
    """Labelled images to evaluate on: DIR/train and DIR/val, each with <class>/<image>, for k-NN and a linear probe; or
    one folder of <class>/<image> for k-NN alone. None: nets are compared by nearest neighbours."""
    teacher: str | None = None
    """Checkpoint directory or backbone name; None: EfficientNet-Lite0, trained on ImageNet."""
    teacher_size: int | None = None
    """Side of the teacher's input, pixels; None: the size of the teacher you passed, else 96 on the toy world, 128 on
    your own images."""
    student: str | None = None
    """Name of the net to train from random weights; None: cifar/resnet20 on the toy world, torchvision/resnet18 on your
    own images."""
    student_size: int | None = None
    """Side of the student's input, pixels; None: 32 on the toy world, 64 on your own images."""
    epochs: int | None = None
    """Passes over the images; None: 6 on the toy world, what `distill.py auto` chooses on your own images."""
    hours: float | None = None
    """Limit of the distillation on your own images, hours; None: no limit."""
    on_broken: Literal["refuse", "skip"] = "skip"
    """What to do with an unreadable image of your own: stop the tour, or skip the image, name it and count it."""
    data_licence: str | None = None
    """Licence of your own images; one that restricts use is recorded in the student's manifest."""
    seed: int = 0
    """Seed of the toy world, the weights, the order and the views."""
    out: Path = Path("runs/quickstart")
    """Folder of the runs and the page, relative to the repository's root."""

    @property
    def is_split(self) -> bool:
        """Whether the labelled images are split into train/ and val/."""
        return self.labelled is not None and all((self.labelled / part).is_dir() for part in ("train", "val"))


def nets_of(tour: Tour) -> dict[str, str]:
    """The nets that are compared: role -> checkpoint directory or name.

    If the student's run may stop early, its best student is taken.
    """
    teacher, run = tour.teacher or str(tour.out / "teacher"), tour.out / "student"
    random = f"random:{tour.student}"
    if tour.images is not None:
        return {"random": random, "student": str(run / "student-best"), "teacher": teacher}
    supervised = str(tour.out / "supervised" / "checkpoint")
    return {"random": random, "supervised": supervised, "student": str(run / "student"), "teacher": teacher}
