"""The settings of the tour, and the nets that it compares."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

NEIGHBOURS = 10
"""k of k-NN, and of neighbour agreement."""


@dataclass(frozen=True, kw_only=True)
class Tour:
    """Distil a small student from a pretrained teacher without labels, and measure what it is worth."""

    images: Path | None = None
    """Folder of your own images, labels not needed; None: a toy world is drawn."""
    labelled: Path | None = None
    """Labelled images to measure on: DIR/train and DIR/val, both DIR/<class>/<image>, for k-NN and a linear probe; or
    one such folder for k-NN alone. Without it nets are compared by nearest neighbours."""
    teacher: str | None = None
    """Checkpoint directory or backbone name; None: EfficientNet-Lite0, trained on ImageNet."""
    teacher_size: int | None = None
    """Side of the teacher's input, pixels; None: as a teacher of your own says, else 96 on the toy world, 128 on your
    own images."""
    student: str | None = None
    """Name of the net to train from random weights; None: cifar/resnet20 on the toy world, torchvision/resnet18 on your
    own images."""
    student_size: int | None = None
    """Side of the student's input, pixels; None: 32 on the toy world, 64 on your own images."""
    epochs: int | None = None
    """Passes over the images; None: 6 on the toy world, what `distill.py auto` chooses on your own images."""
    hours: float | None = None
    """Distil your own images for this long at most."""
    on_broken: Literal["refuse", "skip"] = "skip"
    """What an image of your own that cannot be read does: stop the tour, or be left out, named and counted."""
    data_licence: str | None = None
    """Licence of your own images; a restricted one goes into the student's manifest."""
    seed: int = 0
    """Of the toy world, of weights, order and views."""
    out: Path = Path("runs/quickstart")
    """Folder of the runs and of the page, from the repository's root."""

    @property
    def is_split(self) -> bool:
        """Whether the labelled images have a part to learn from and one to measure on."""
        return self.labelled is not None and all((self.labelled / part).is_dir() for part in ("train", "val"))


def nets_of(tour: Tour) -> dict[str, str]:
    """What is compared: role -> checkpoint directory or name.

    Of a run that may stop early it is the student of the best measurement.
    """
    teacher, run = tour.teacher or str(tour.out / "teacher"), tour.out / "student"
    random = f"random:{tour.student}"
    if tour.images is not None:
        return {"random": random, "student": str(run / "student-best"), "teacher": teacher}
    supervised = str(tour.out / "supervised" / "checkpoint")
    return {"random": random, "supervised": supervised, "student": str(run / "student"), "teacher": teacher}
