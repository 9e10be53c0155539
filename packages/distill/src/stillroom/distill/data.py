"""The images of a run: which of them are trained on, and which are held out to measure the students."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillroom.images import Source, read_labelled, read_unlabelled
from stillroom.images.labels import USUAL, Columns

MAX_HELD_OUT = 512
MIN_HELD_OUT = 8


@dataclass(frozen=True, kw_only=True)
class RunImages:
    """The images of a run.

    Args:
        all: every image; alignments are fitted on them, or on a draw.
        train: the images that the students are trained on.
        held_out: the other images, which only measure the students; None where there are none.
    """

    all: Source
    train: Source
    held_out: Source | None


def read_images(data: Path, columns: Columns = USUAL, *, held_out: float, seed: int, labelled: bool) -> RunImages:
    """List the images of a run and split them once.

    Args:
        data: a source of images, see `read_unlabelled`; by class where labels are needed.
        columns: of a table.
        held_out: fraction of the images to hold out, see `split_held_out`.
        seed: of the split.
        labelled: whether an alignment is fitted on labels.

    Raises:
        ValueError: see `read_labelled` and `read_unlabelled`.
    """
    files = read_labelled(data, columns=columns) if labelled else read_unlabelled(data, columns)
    train, rest = split_held_out(files, held_out, seed)
    return RunImages(all=files, train=train, held_out=rest)


def split_held_out(files: Source, fraction: float, seed: int) -> tuple[Source, Source | None]:
    """Split off a seeded fraction of the images, at most 512; None where it would be fewer than 8."""
    count = min(MAX_HELD_OUT, round(fraction * len(files)))
    if count < MIN_HELD_OUT:
        return files, None
    order = np.random.default_rng([seed, len(files)]).permutation(len(files))
    return files.subset(np.sort(order[count:])), files.subset(np.sort(order[:count]))


def draw_images(files: Source, limit: int, seed: int) -> Source:
    """At most `limit` of the images, drawn by the seed and left in their order; all where there are no more."""
    if len(files) <= limit:
        return files
    drawn = np.random.default_rng([seed, len(files), limit]).choice(len(files), limit, replace=False)
    return files.subset(sorted(drawn.tolist()))


def nothing_held_out(num_images: int, fraction: float) -> str:
    """The note of a run that holds out none of its images, because the fraction would be fewer than 8."""
    too_few = f"{100 * fraction:g} % of {num_images} images is fewer than {MIN_HELD_OUT}"
    note = f"{too_few}: the student is not measured on held-out images"
    enough = math.ceil(100 * MIN_HELD_OUT / num_images) / 100
    return f"{note}; pass --monitor.held-out {enough:g} to hold out {MIN_HELD_OUT}" if enough <= 0.5 else note


def check_knn_folder(folder: Path) -> None:
    """Refuse a labelled folder that k-NN cannot be measured on.

    Raises:
        ValueError: missing folder, no class folders, classes that differ between train/ and val/.
    """
    if (folder / "train").is_dir() and (folder / "val").is_dir():
        read_labelled(folder / "val", read_labelled(folder / "train").classes)
    else:
        read_labelled(folder)
