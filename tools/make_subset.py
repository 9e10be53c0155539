"""Select a seeded part of a source of images: as a file list, a table, a folder of links or tar shards, for any --data.

    python tools/make_subset.py --data imagenet/train --per-class 128 --out imagenet-10.txt
    python tools/make_subset.py --data imagenet/train --classes 100 --out imagenet-100     # SimReg's ImageNet-100
    python tools/make_subset.py --data images.csv --per-class 20 --out part.csv            # with the table's labels
    python tools/make_subset.py --data images.zip --fraction 0.1 --out part                # tar shards of an archive

The last line printed ends with the part's fingerprint: two lists with equal fingerprints hold the same images.
"""

import csv
import io
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from pack import MIB, SHARD_MIB, pack
from stillroom.backbone.atomic import refuse_existing, replace_directory, write_file
from stillroom.backbone.checks import at_least
from stillroom.backbone.command import report_errors
from stillroom.images import Source, read_labelled, read_unlabelled
from stillroom.images.files import read_source, shuffled_by_class
from stillroom.images.formats import image_suffixes, is_hidden, suffix
from stillroom.images.labels import USUAL, Columns
from stillroom.images.lists import TABLES
from stillroom.images.source import FileReader, as_labels, from_paths

_CLASSES_SEED = 1234  # SimReg's ImageNet-100


@dataclass(frozen=True, kw_only=True)
class Subset:
    """The part to select."""

    data: Path
    """Image folder, file list, or any other source of images; --per-class and --classes need classes."""
    out: Path
    """File list (.txt) or table with labels (.csv) to write, or folder to create (any other name): of links to files,
    or of tar shards where the images lie in an archive, in a data set or at an address."""
    per_class: int | None = None
    """Number of images of each class."""
    fraction: float | None = None
    """Share of the images, (0, 1]; with class folders, the same share of each class."""
    classes: int | None = None
    """Only this many classes: the first of the sorted names permuted with NumPy seed 1234, as SimReg does."""
    seed: int = 0
    """Seed of the random selection."""
    labels: bool = True
    """Keep the labels that the images have, by their class folders or by themselves."""
    columns: Columns = USUAL

    def run(self) -> None:
        at_least(self, 0, "seed")
        refuse_existing(self.out)
        if suffix(self.out.name) in {*TABLES, ".tar", ".zip"} - {".csv"}:
            raise ValueError(f"--out is {self.out}: pass a list (.txt), a table (.csv) or a folder")
        part = select_images(self)
        fingerprint = write(part if self.labels else replace(part, labels=None, classes=()), self)
        print(f"{self.out}: {len(part)} images, fingerprint {fingerprint}")


def select_images(subset: Subset) -> Source:
    """Select images by the settings; returns them in the order of their paths.

    Raises:
        ValueError: no amount or two, more than there is, or no class folders.
    """
    if (subset.per_class is None) == (subset.fraction is None) and (subset.classes is None or subset.per_class):
        raise ValueError("pass --per-class N or --fraction F, not both; or --classes N alone for whole classes")
    if subset.fraction is not None and not 0 < subset.fraction <= 1:
        raise ValueError(f"--fraction is {subset.fraction}: it must lie in (0, 1]")
    files = read(subset)
    by_class = shuffled_by_class(files.labels or [0] * len(files), subset.seed)
    kept = [*by_class]
    if subset.classes is not None:
        if not 0 < subset.classes <= len(files.classes):
            raise ValueError(f"--classes is {subset.classes}, {subset.data} has {len(files.classes)} classes")
        kept = np.random.RandomState(_CLASSES_SEED).permutation(len(files.classes))[: subset.classes].tolist()
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
    part = files.subset(sorted(chosen))
    if part.labels is None:
        return part
    present, labels = np.unique(np.asarray(part.labels), return_inverse=True)
    return replace(part, labels=as_labels(labels), classes=tuple(files.classes[label] for label in present))


def read(subset: Subset) -> Source:
    """List the images: with classes where they are needed, or where there are class folders or labels of their own."""
    data, columns = subset.data, subset.columns
    if subset.per_class is not None or subset.classes is not None:
        return read_labelled(data, columns=columns)
    has_folders = data.is_dir() and any(entry.is_dir() for entry in data.iterdir())
    if subset.labels and (has_folders or read_source(data, columns, labelled=True).labels is not None):
        return read_labelled(data, columns=columns)
    return read_unlabelled(data, columns)


def write(part: Source, subset: Subset) -> str:
    """Write a list, a table, links or shards; returns the fingerprint of their images.

    Raises:
        ValueError: labels, or images, that the chosen form cannot hold.
    """
    form = suffix(subset.out.name)
    if not isinstance(part.reader, FileReader):
        if form in (".txt", ".csv"):
            raise ValueError(
                f"the images of {subset.data} are not files of this machine, which a list or a table could name: pass "
                f"--out {subset.out.with_suffix('')}, a folder of tar shards"
            )
        return pack(part, subset.out, SHARD_MIB * MIB)[1]
    listed = from_paths([path.resolve() for path in part.paths], labels=part.labels, classes=part.classes)
    if form == ".csv":
        write_table(listed, subset.out)
        return listed.fingerprint
    written, what = (listed, "list") if form == ".txt" else (part, "folder")
    if not has_class_folders(written):
        raise ValueError(
            f"the classes of {subset.data} are not the folders of its images, so a {what} would lose them: pass "
            f"--out {subset.out.with_suffix('.csv')}, a table with labels, or --no-labels"
        )
    if form == ".txt":
        write_list(written, subset)
    else:
        link(written, subset.out)
    return written.fingerprint


def has_class_folders(part: Source) -> bool:
    """Whether each image lies in a folder of its class; all of one class may share the root. True without labels."""
    if part.labels is None:
        return True
    folders = (os.fsdecode(name).rpartition("/")[0] for name in part.listing.names(part.rows))
    return all(
        (folder.partition("/")[0] or part.root.name) == part.classes[label]
        for folder, label in zip(folders, part.labels, strict=True)
    )


def write_list(part: Source, subset: Subset) -> None:
    """Write one path per line, relative to the list's folder, below comments with settings and fingerprint."""
    left_out = ("data", "out", "columns", "labels")
    how = ", ".join(f"{name} {value}" for name, value in vars(subset).items() if name not in left_out and value)
    head = [f"# {len(part)} images of {subset.data}: {how or 'all'}", f"# fingerprint {part.fingerprint}"]
    write_file(subset.out, "\n".join([*head, *paths_from(part, subset.out)]) + "\n")


def write_table(part: Source, out: Path) -> None:
    """Write a CSV table of paths, relative to its folder, and of the names of classes where there are labels."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    if part.labels is None:
        table.writerows([["path"], *([path] for path in paths_from(part, out))])
    else:
        names = [part.classes[label] for label in part.labels]
        table.writerows([["path", "label"], *zip(paths_from(part, out), names, strict=True)])
    write_file(out, text.getvalue())


def paths_from(part: Source, out: Path) -> list[str]:
    """The paths of images, relative to the folder of a file that names them."""
    here = out.resolve().parent
    return [os.path.relpath(path, here) for path in part.paths]


def link(part: Source, out: Path) -> None:
    """Create a folder of links with the same subfolders.

    Raises:
        ValueError: names that a folder cannot hold twice, or that are left out where it is read.
    """
    with replace_directory(out) as temporary:
        for path in part.paths:
            name = path.relative_to(part.root)
            if any(map(is_hidden, name.parts)) or suffix(name.name) not in image_suffixes():
                raise ValueError(
                    f"{path} would be left out of a folder, by its name: pass --out {out.name}.txt, a list"
                )
            if (target := temporary / name).is_symlink():
                raise ValueError(f"{path} is listed twice: remove one, or pass --out {out.name}.txt, a list")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.resolve())


@report_errors
def main() -> None:
    """Select the images and write them."""
    tyro.cli(Subset, description=__doc__).run()


if __name__ == "__main__":
    main()
