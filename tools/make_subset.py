"""Choose a seeded part of an image folder, as a file list that every --data takes, or as a folder of links.

    python tools/make_subset.py --data imagenet/train --per-class 128 --out imagenet-10.txt
    python tools/make_subset.py --data imagenet/train --classes 100 --out imagenet-100     # SimReg's ImageNet-100

The last line printed is the part's fingerprint: two lists with the same one hold the same images.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from stillroom.backbone import ImageFiles, read_labelled, read_unlabelled
from stillroom.backbone.atomic import refuse_existing, replace_directory, write_file
from stillroom.backbone.command import report_errors
from stillroom.backbone.image_files import from_paths, shuffled_by_class

_CLASSES_SEED = 1234  # of SimReg's ImageNet-100


@dataclass(frozen=True, kw_only=True)
class Subset:
    """What to take."""

    data: Path
    """Image folder; for --per-class and --classes one of class folders."""
    out: Path
    """File list to write (.txt), or folder of links to make (any other name)."""
    per_class: int | None = None
    """Images of each class."""
    fraction: float | None = None
    """Share of the images, (0, 1]; the same share of each class where there are class folders."""
    classes: int | None = None
    """Only this many classes: the first of a permutation of the sorted names by NumPy seed 1234, SimReg's rule."""
    seed: int = 0
    """Of the images drawn."""

    def run(self) -> None:
        refuse_existing(self.out)
        part = choose(self)
        if self.out.suffix == ".txt":
            part = from_paths([path.resolve() for path in part.paths])
            write_list(part, self)
        else:
            link(part, self.out)
        print(f"{self.out}: {len(part)} images, fingerprint {part.fingerprint}")


def choose(subset: Subset) -> ImageFiles:
    """The images that the settings ask for, in the order of their paths.

    Raises:
        ValueError: nothing or both ways asked for, more than there is, no class folders.
    """
    if (subset.per_class is None) == (subset.fraction is None) and (subset.classes is None or subset.per_class):
        raise ValueError("say how much: --per-class N or --fraction F, not both; or --classes N alone for all of them")
    if subset.fraction is not None and not 0 < subset.fraction <= 1:
        raise ValueError(f"--fraction is {subset.fraction}: it must lie in (0, 1]")
    folders = [entry for entry in subset.data.iterdir() if entry.is_dir()] if subset.data.is_dir() else []
    needs_classes = subset.per_class is not None or subset.classes is not None
    files = read_labelled(subset.data) if folders or needs_classes else read_unlabelled(subset.data)
    kept = range(len(files.classes)) if files.labels else range(1)
    if subset.classes is not None:
        if not 0 < subset.classes <= len(files.classes):
            raise ValueError(f"{subset.data} has {len(files.classes)} classes, {subset.classes} were asked for")
        kept = np.random.RandomState(_CLASSES_SEED).permutation(len(files.classes))[: subset.classes].tolist()
    places = shuffled_by_class(files.labels or [0] * len(files), subset.seed)
    chosen: list[int] = []
    for label in kept:
        members = places[label]
        count = len(members)
        if subset.per_class is not None:
            count = subset.per_class
            if not 0 < count <= len(members):
                raise ValueError(f"class {files.classes[label]} has {len(members)} images, {count} were asked for")
        elif subset.fraction is not None:
            count = max(1, round(subset.fraction * len(members)))
        chosen += members[:count]
    return files.subset(sorted(chosen))


def write_list(part: ImageFiles, subset: Subset) -> None:
    """One path per line, relative to the list's folder; comments say what it is."""
    how = ", ".join(f"{name} {value}" for name, value in vars(subset).items() if name not in ("data", "out") and value)
    here = subset.out.resolve().parent
    lines = [os.path.relpath(path, here) for path in part.paths]
    head = [f"# {len(part)} images of {subset.data}: {how or 'all'}", f"# fingerprint {part.fingerprint}"]
    write_file(subset.out, "\n".join([*head, *lines]) + "\n")


def link(part: ImageFiles, out: Path) -> None:
    """A folder with the same subfolders, of links."""
    with replace_directory(out) as aside:
        for path in part.paths:
            place = aside / path.relative_to(part.root)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())


@report_errors
def main() -> None:
    """Choose and write."""
    tyro.cli(Subset, description=__doc__).run()


if __name__ == "__main__":
    main()
