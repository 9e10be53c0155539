"""Select a seeded part of a source of images, as a file list for any --data, or as a folder of links.

    python tools/make_subset.py --data imagenet/train --per-class 128 --out imagenet-10.txt
    python tools/make_subset.py --data imagenet/train --classes 100 --out imagenet-100     # SimReg's ImageNet-100

The last line printed ends with the part's fingerprint: two lists with equal fingerprints hold the same images.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from stillroom.backbone.atomic import refuse_existing, replace_directory, write_file
from stillroom.backbone.checks import at_least
from stillroom.backbone.command import report_errors
from stillroom.images import Source, read_labelled, read_unlabelled
from stillroom.images.files import shuffled_by_class
from stillroom.images.labels import USUAL, Columns
from stillroom.images.source import FileReader, from_paths

_CLASSES_SEED = 1234  # SimReg's ImageNet-100


@dataclass(frozen=True, kw_only=True)
class Subset:
    """The part to select."""

    data: Path
    """Image folder, file list or table of files; --per-class and --classes need classes."""
    out: Path
    """File list to write (.txt), or folder of links to create (any other name)."""
    per_class: int | None = None
    """Number of images of each class."""
    fraction: float | None = None
    """Share of the images, (0, 1]; with class folders, the same share of each class."""
    classes: int | None = None
    """Only this many classes: the first of the sorted names permuted with NumPy seed 1234, as SimReg does."""
    seed: int = 0
    """Seed of the random selection."""
    columns: Columns = USUAL

    def run(self) -> None:
        at_least(self, 0, "seed")
        refuse_existing(self.out)
        part = select_images(self)
        if self.out.suffix == ".txt":
            part = from_paths([path.resolve() for path in part.paths])
            write_list(part, self)
        else:
            link(part, self.out)
        print(f"{self.out}: {len(part)} images, fingerprint {part.fingerprint}")


def select_images(subset: Subset) -> Source:
    """Select images by the settings; returns them in the order of their paths.

    Raises:
        ValueError: no amount or two, more than there is, or no class folders.
    """
    if (subset.per_class is None) == (subset.fraction is None) and (subset.classes is None or subset.per_class):
        raise ValueError("pass --per-class N or --fraction F, not both; or --classes N alone for whole classes")
    if subset.fraction is not None and not 0 < subset.fraction <= 1:
        raise ValueError(f"--fraction is {subset.fraction}: it must lie in (0, 1]")
    folders = [entry for entry in subset.data.iterdir() if entry.is_dir()] if subset.data.is_dir() else []
    needs_classes = subset.per_class is not None or subset.classes is not None
    read = read_labelled if folders or needs_classes else read_unlabelled
    files = read(subset.data, columns=subset.columns)
    if not isinstance(files.reader, FileReader):
        raise ValueError(f"the images of {subset.data} are no files of this machine, which a list or links could name")
    kept = range(len(files.classes)) if files.labels else range(1)
    if subset.classes is not None:
        if not 0 < subset.classes <= len(files.classes):
            raise ValueError(f"--classes is {subset.classes}, {subset.data} has {len(files.classes)} classes")
        kept = np.random.RandomState(_CLASSES_SEED).permutation(len(files.classes))[: subset.classes].tolist()
    by_class = shuffled_by_class(files.labels or [0] * len(files), subset.seed)
    chosen: list[int] = []
    for label in kept:
        members = by_class[label]
        count = len(members)
        if subset.per_class is not None:
            count = subset.per_class
            if not 0 < count <= len(members):
                raise ValueError(f"--per-class is {count}, class {files.classes[label]} has {len(members)} images")
        elif subset.fraction is not None:
            count = max(1, round(subset.fraction * len(members)))
        chosen += members[:count]
    return files.subset(sorted(chosen))


def write_list(part: Source, subset: Subset) -> None:
    """Write one path per line, relative to the list's folder, below comments with settings and fingerprint."""
    how = ", ".join(
        f"{name} {value}" for name, value in vars(subset).items() if name not in ("data", "out", "columns") and value
    )
    here = subset.out.resolve().parent
    lines = [os.path.relpath(path, here) for path in part.paths]
    head = [f"# {len(part)} images of {subset.data}: {how or 'all'}", f"# fingerprint {part.fingerprint}"]
    write_file(subset.out, "\n".join([*head, *lines]) + "\n")


def link(part: Source, out: Path) -> None:
    """Create a folder of links with the same subfolders."""
    with replace_directory(out) as temporary:
        for path in part.paths:
            target = temporary / path.relative_to(part.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.resolve())


@report_errors
def main() -> None:
    """Select the images and write them."""
    tyro.cli(Subset, description=__doc__).run()


if __name__ == "__main__":
    main()
