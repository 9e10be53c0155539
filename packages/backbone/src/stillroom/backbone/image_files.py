"""Image files on disk, labelled or not: which there are, in which order. None is opened."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})


@dataclass(frozen=True)
class ImageFiles:
    """Image files below one folder, in a fixed order; `labels` index `classes`, or are None where there are none."""

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over each file's relative path and size in bytes, in order: cheap, and blind to dates and copies."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(f"{path.relative_to(self.root).as_posix()}\0{path.stat().st_size}\n".encode())
        return digest.hexdigest()

    @cached_property
    def stamp(self) -> str:
        """SHA-256 over each file's path, size and date of change: of these very files, for caches on this machine."""
        digest = hashlib.sha256()
        for path in self.paths:
            status = path.stat()
            digest.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def subset(self, indices: Sequence[int]) -> "ImageFiles":
        """Some of the files, in the order of `indices`."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in indices)
        return ImageFiles(self.root, tuple(self.paths[i] for i in indices), labels, self.classes)


def existing_folder(folder: Path) -> Path:
    """The folder itself.

    Raises:
        ValueError: it is not there.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    return folder


def refuse_missing_images(source: Path) -> None:
    """Refuse an image folder, or a file list, that is not there; what is in it is not looked at.

    Raises:
        ValueError: see `existing_folder`.
    """
    if not source.is_file():
        existing_folder(source)


def read_unlabelled(source: str | Path) -> ImageFiles:
    """Every image below a folder, whatever its subfolders mean, in the order of their paths; or those of a file list.

    A file list is a text file, one path per line, relative to the list's own folder or absolute; `#` begins a comment.

    Raises:
        ValueError: missing or empty folder or list, or listed files that are not there.
    """
    root = Path(source)
    if root.is_file():
        return _read_list(root)
    paths = tuple(sorted(_walk(existing_folder(root))))
    if not paths:
        raise ValueError(f"{root} holds no images (looked for {', '.join(sorted(EXTENSIONS))}, in subfolders too)")
    return ImageFiles(root, paths)


def _read_list(file: Path) -> ImageFiles:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no list of images: expected text with one path per line") from error
    paths = tuple(file.resolve().parent / line for line in lines if line and not line.startswith("#"))
    if not paths:
        raise ValueError(f"{file} lists no images")
    if absent := [path for path in paths if not path.is_file()]:
        raise ValueError(f"{file} lists {len(absent)} files that are not there, the first is {absent[0]}")
    return listed(paths)


def listed(paths: Sequence[Path]) -> ImageFiles:
    """Files that no folder names: their root, from which the fingerprint counts, is the deepest that holds them all."""
    return ImageFiles(Path(os.path.commonpath([path.parent for path in paths])), tuple(paths))


def read_some(images: Path) -> ImageFiles:
    """One image, or those of a folder or of a file list; see `read_unlabelled`."""
    alone = images.is_file() and images.suffix != ".txt"
    return listed([images.resolve()]) if alone else read_unlabelled(images)


def picture_names(files: ImageFiles) -> list[Path]:
    """Where the PNG that is made of each image goes, below a folder.

    Raises:
        ValueError: two images would share one.
    """
    names = [file.relative_to(files.root).with_suffix(".png") for file in files.paths]
    if len({*names}) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"two images of {files.root} would share the picture {twice}: rename one of them")
    return names


def read_labelled(folder: str | Path, classes: Sequence[str] | None = None) -> ImageFiles:
    """An image folder: one subfolder per class, images in it.

    Args:
        folder: the folder of the class folders.
        classes: the expected classes (those of the training set), in label order; None takes what is there, sorted.

    Raises:
        ValueError: missing or empty folder, no class folders, images beside them, a class without images, classes that
            differ.
    """
    root = existing_folder(Path(folder))
    found = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise ValueError(f"{root} holds no class folders: expected {root.name}/<class>/<image>")
    if loose := sorted(e.name for e in root.glob("[!.]*") if e.suffix.lower() in EXTENSIONS and e.is_file()):
        raise ValueError(f"{root} holds {len(loose)} images beside its class folders, the first is {loose[0]}")
    if classes is not None and set(found) != set(classes):
        lacks, extra = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
        raise ValueError(f"the classes of {root} differ from the training set's: missing {lacks}, extra {extra}")
    classes = tuple(classes) if classes is not None else tuple(found)
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        members = sorted(_walk(root / name))
        if not members:
            raise ValueError(f"class folder {root / name} holds no images")
        paths += members
        labels += [label] * len(members)
    return ImageFiles(root, tuple(paths), tuple(labels), classes)


def shuffled_by_class(labels: Sequence[int], seed: int) -> dict[int, list[int]]:
    """The places of each class's images, in an order drawn from the seed and the class: its first ones are a draw."""
    places: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for place, label in enumerate(labels):
        places[label].append(place)
    return {
        label: np.random.default_rng([seed, label]).permutation(members).tolist() for label, members in places.items()
    }


def _walk(folder: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if Path(name).suffix.lower() in EXTENSIONS:
                yield Path(directory) / name
