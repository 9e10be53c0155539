"""Lists of image files, labelled or not, in a fixed order. No image is opened."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

MAX_HASHED = 1000
"""Images of a set whose contents are hashed."""
HASHED_BYTES = 2**20
"""Bytes of each that are, from its beginning."""

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})


@dataclass(frozen=True)
class ImageFiles:
    """Image files below one folder, in a fixed order; `labels` index `classes`, or are None for unlabelled images."""

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over each file's relative path and size in bytes, in order: cheap, and the same for a copy."""
        return _sha256(f"{path.relative_to(self.root).as_posix()}\0{path.stat().st_size}" for path in self.paths)

    @cached_property
    def content(self) -> str:
        """SHA-256 over the first MiB of at most 1,000 of the files, spread evenly: what their sizes do not show."""
        step = -(-len(self) // MAX_HASHED) | 1  # odd: where images and masks alternate, both are in the sample
        return _sha256(map(_hash_start, self.paths[::step]))

    @cached_property
    def stamp(self) -> str:
        """SHA-256 over each file's path, size and modification time, and `content`: for caches on this machine."""
        stats = ((path.resolve(), path.stat()) for path in self.paths)
        return _sha256(chain((f"{p}\0{stat.st_size}\0{stat.st_mtime_ns}" for p, stat in stats), [self.content]))

    def subset(self, indices: Sequence[int]) -> "ImageFiles":
        """Some of the files, in the order of `indices`."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in indices)
        return ImageFiles(self.root, tuple(self.paths[i] for i in indices), labels, self.classes)


def refuse_missing_folder(folder: Path) -> None:
    """Raise ValueError if there is no such folder."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")


def refuse_missing_images(source: Path) -> None:
    """Raise ValueError if there is no such image folder or file list; its contents are not read."""
    if not source.is_file():
        refuse_missing_folder(source)


def read_unlabelled(source: str | Path) -> ImageFiles:
    """List every image below a folder, in the order of their paths, or the images of a file list.

    A file list is a text file, one path per line, relative to the list's own folder or absolute; `#` begins a comment.

    Raises:
        ValueError: missing or empty folder or list, or listed files that do not exist.
    """
    root = Path(source)
    if root.is_file():
        return _read_list(root)
    refuse_missing_folder(root)
    paths = tuple(sorted(_walk(root)))
    if not paths:
        raise ValueError(f"{root} holds no images (looked for {', '.join(sorted(EXTENSIONS))}, in subfolders too)")
    return ImageFiles(root, paths)


def _read_list(file: Path) -> ImageFiles:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a list of images: expected text with one path per line") from error
    paths = tuple(file.resolve().parent / line for line in lines if line and not line.startswith("#"))
    if not paths:
        raise ValueError(f"{file} lists no images")
    if absent := [path for path in paths if not path.is_file()]:
        raise ValueError(f"{file} lists {len(absent)} files that do not exist, the first is {absent[0]}")
    return from_paths(paths)


def from_paths(paths: Sequence[Path]) -> ImageFiles:
    """Image files by their paths; the root, which the fingerprint's paths are relative to, is their common folder."""
    return ImageFiles(Path(os.path.commonpath([path.parent for path in paths])), tuple(paths))


def read_images(images: Path) -> ImageFiles:
    """List one image, or those of a folder or of a file list; see `read_unlabelled`."""
    is_image = images.is_file() and images.suffix != ".txt"
    return from_paths([images.resolve()]) if is_image else read_unlabelled(images)


def png_names(files: ImageFiles) -> list[Path]:
    """The relative path of the PNG that is written for each image; ValueError if two images would share one."""
    names = [file.relative_to(files.root).with_suffix(".png") for file in files.paths]
    if len({*names}) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise ValueError(f"two images of {files.root} would share the PNG {twice}: rename one of them")
    return names


def read_labelled(folder: str | Path, classes: Sequence[str] | None = None) -> ImageFiles:
    """List an image folder: one subfolder per class, images in it.

    Args:
        folder: the folder of the class folders.
        classes: the expected classes (those of the training set), in label order; None: the subfolders, sorted.

    Raises:
        ValueError: missing or empty folder, no class folders, images beside them, a class without images, classes that
            differ.
    """
    root = Path(folder)
    refuse_missing_folder(root)
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ValueError(f"{root} holds no class folders: expected {root.name}/<class>/<image>")
    if loose := sorted(e.name for e in root.glob("[!.]*") if e.suffix.lower() in EXTENSIONS and e.is_file()):
        raise ValueError(f"{root} holds {len(loose)} images beside its class folders, the first is {loose[0]}")
    if classes is not None and set(names) != set(classes):
        lacks, extra = sorted(set(classes) - set(names)), sorted(set(names) - set(classes))
        raise ValueError(f"the classes of {root} differ from the training set's: missing {lacks}, extra {extra}")
    classes = tuple(classes or names)
    members = [sorted(_walk(root / name)) for name in classes]
    if empty := [name for name, paths in zip(classes, members, strict=True) if not paths]:
        raise ValueError(f"class folder {root / empty[0]} holds no images")
    labels = tuple(label for label, paths in enumerate(members) for _ in paths)
    return ImageFiles(root, tuple(chain(*members)), labels, classes)


def shuffled_by_class(labels: Sequence[int], seed: int) -> dict[int, list[int]]:
    """The indices of each class's images, in a random order given by seed and class: any first ones are a sample."""
    indices: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for index, label in enumerate(labels):
        indices[label].append(index)
    return {
        label: np.random.default_rng([seed, label]).permutation(members).tolist() for label, members in indices.items()
    }


def _sha256(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _hash_start(path: Path) -> str:
    try:
        with path.open("rb") as opened:
            return hashlib.sha256(opened.read(HASHED_BYTES)).hexdigest()
    except OSError:  # named and counted where images are decoded
        return "unreadable"


def _walk(folder: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if Path(name).suffix.lower() in EXTENSIONS:
                yield Path(directory) / name
