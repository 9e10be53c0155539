"""Lists of image files, labelled or not, in a fixed order: one walk for every package. No image is decoded."""

import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from itertools import chain
from pathlib import Path

import numpy as np

from stillroom.backbone.results import DatasetRecord

SYSTEM_FOLDERS = frozenset({"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information"})
"""Folders that systems fill with copies and thumbnails of a user's images, without hiding them by a dot."""
SPLITS = frozenset({"train", "training", "trainval", "val", "valid", "validation", "dev", "test", "testing"})
MAX_HASHED = 1000
"""Images of a set whose contents are hashed."""
HASHED_BYTES = 2**20
"""Bytes of each that are, from its beginning."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files below one folder, in a fixed order; `labels` index `classes`, or are None for unlabelled images.

    `left_out` counts the other files of the folder, by reason; see `walk`.
    """

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict, hash=False)

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

    def record(self, broken: int = 0, in_train: int | None = None) -> DatasetRecord:
        """The entry in results.json."""
        return DatasetRecord(
            path=str(self.root),
            count=len(self),
            fingerprint=self.fingerprint,
            broken=broken,
            content=self.content,
            left_out=self.left_out,
            in_train=in_train,
        )

    def subset(self, indices: Sequence[int]) -> "ImageFiles":
        """Some of the files, in the order of `indices`."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in indices)
        return ImageFiles(self.root, tuple(self.paths[i] for i in indices), labels, self.classes, self.left_out)


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
    paths, left_out = walk(root)
    if not paths:
        raise ValueError(f"{root} holds no images, in subfolders neither: expected a format that Pillow decodes")
    return ImageFiles(root, paths, left_out=left_out)


def _read_list(file: Path) -> ImageFiles:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
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
        ValueError: missing or empty folder, no class folders, images beside them, a class without images or with images
            in subfolders only, classes that differ.
    """
    root = Path(folder)
    refuse_missing_folder(root)
    names = sorted(entry.name for entry in root.iterdir() if not _is_hidden(entry.name) and entry.is_dir())
    if not names:
        raise ValueError(f"{root} holds no class folders: expected {root.name}/<class>/<image>")
    paths, left_out = walk(root)
    depth = len(root.parts)
    if loose := [path.name for path in paths if len(path.parts) == depth + 1]:
        raise ValueError(f"{root} holds {len(loose)} images beside its class folders, the first is {loose[0]}")
    members: dict[str, list[Path]] = {name: [] for name in names}
    for path in paths:
        members[path.parts[depth]].append(path)
    below = {name: [len(path.parts) > depth + 2 for path in members[name]] for name in names}
    splits = [name for name in names if name.lower() in SPLITS]
    if any(any(below[name]) for name in splits) or (splits == names and len(names) > 1):
        of_role = [name for name in splits if name.lower().startswith("train") == (classes is None)]
        holds = " and ".join(f"{name}/" for name in splits)
        raise ValueError(f"{root} holds {holds}: pass {root / (of_role or splits)[0]}")
    if nested := [name for name in names if below[name] and all(below[name])]:
        raise ValueError(
            f"class folder {root / nested[0]} holds only folders: expected {root.name}/<class>/<image>; "
            f"pass the folder of the class folders, or move the images up"
        )
    if classes is not None and set(names) != set(classes):
        lacks, extra = sorted(set(classes) - set(names)), sorted(set(names) - set(classes))
        raise ValueError(f"the classes of {root} differ from the training set's: missing {lacks}, extra {extra}")
    classes = tuple(classes or names)
    if empty := [name for name in classes if not members[name]]:
        raise ValueError(f"class folder {root / empty[0]} holds no images")
    labels = tuple(label for label, name in enumerate(classes) for _ in members[name])
    return ImageFiles(root, tuple(chain(*(members[name] for name in classes))), labels, classes, left_out)


def walk(root: Path, suffixes: Collection[str] | None = None) -> tuple[tuple[Path, ...], dict[str, int]]:
    """List the image files below a folder, in the order of their paths, and count the other files by reason.

    Left out, and named in one line on stderr, are hidden files and all files in hidden folders (a name that begins with
    a dot, `SYSTEM_FOLDERS`), files that are no images by their suffix, links to nothing and what is no regular file
    (a pipe), and links to a folder that was already entered. Folders are entered before links to folders, so a link
    never takes the images of a folder beside it.

    Args:
        root: an existing folder; its own name may be hidden.
        suffixes: of the files to list, in lower case; None: those of images, see `image_suffixes`.
    """
    suffixes = image_suffixes() if suffixes is None else suffixes
    paths: list[Path] = []
    left_out: defaultdict[str, int] = defaultdict(int)
    examples: dict[str, Path] = {}
    entered: set[tuple[int, int]] = set()
    folders: list[Path] = [root]
    links: list[Path] = []

    def leave_out(reason: str, path: Path, count: int = 1) -> None:
        if count:
            left_out[reason] += count
            examples.setdefault(reason, path.relative_to(root))

    while folders or links:
        folder = (folders or links).pop(0)
        stat = folder.stat()
        if (stat.st_dev, stat.st_ino) in entered:
            leave_out("link to a folder already entered", folder)
            continue
        entered.add((stat.st_dev, stat.st_ino))
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path, is_link = folder / entry.name, entry.is_symlink()
                target = path if is_link else entry  # a Path answers for links that lead nowhere, or in a circle
                if _is_hidden(entry.name):
                    below = not is_link and entry.is_dir()
                    leave_out("hidden", path, sum(len(n) for _, _, n in os.walk(path)) if below else 1)
                elif target.is_dir():
                    (links if is_link else folders).append(path)
                elif not target.is_file():
                    leave_out("broken link, or no regular file", path)
                elif path.suffix.lower() not in suffixes:
                    leave_out("not an image", path)
                else:
                    paths.append(path)
    if left_out:
        _report(f"left out of {root}: " + ", ".join(f"{n} {why} ({examples[why]})" for why, n in left_out.items()))
    return tuple(sorted(paths)), dict(left_out)


@cache
def image_formats() -> tuple[str, ...]:
    """The formats that the installed Pillow decodes, by its names.

    Not among them: formats that it only writes (PDF, Palm) or only identifies (MPEG, and stubs, whose pixels need a
    handler of the user's: HDF5, GRIB, BUFR, WMF), and EPS, a program, which Ghostscript would run.
    """
    from PIL import Image, ImageFile  # noqa: PLC0415  # all plugins; most commands list no images

    Image.init()
    stubs = {stub.format for stub in ImageFile.StubImageFile.__subclasses__()}
    return tuple(name for name in Image.OPEN if name not in stubs | {"EPS", "MPEG"})


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of the formats that the installed Pillow decodes, in lower case."""
    from PIL import Image  # noqa: PLC0415

    formats = {*image_formats(), "MPO"}  # several JPEGs in one file, opened as a JPEG
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def count_shared(train: Sequence[Path], test: Sequence[Path], where: Path) -> int:
    """Count the test images that are training images too, byte for byte, and say so on stderr.

    Only files of equal size are opened, and only files with equal ends (where compressed images differ) are read whole.

    Args:
        train, test: the files.
        where: folder of the test images, for the warning.
    """
    keys = (lambda path: path.stat().st_size, partial(_digest, last=4096), partial(_digest, last=sys.maxsize))
    kept = list(test)
    for key in keys:
        of_train, of_test = ({path: key(path) for path in paths} for paths in (train, kept))
        both = {*of_train.values()} & {*of_test.values()}
        train, kept = ([path for path in paths if paths[path] in both] for paths in (of_train, of_test))
    if kept:
        _report(f"warning: {len(kept)} of {len(test)} images of {where} are training images too, byte for byte")
    return len(kept)


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
        digest.update(f"{line}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _hash_start(path: Path) -> str:
    try:
        with path.open("rb") as opened:
            return hashlib.sha256(opened.read(HASHED_BYTES)).hexdigest()
    except OSError:  # named and counted where images are decoded
        return "unreadable"


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def _digest(path: Path, last: int) -> bytes:
    """SHA-256 of the last bytes of a file."""
    with path.open("rb") as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - last))
        return hashlib.file_digest(opened, "sha256").digest()


@cache  # a command lists its images several times
def _report(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)
