"""Lists of image files, labelled or not, in a fixed order: one walk for every package. No image is decoded."""

import hashlib
import heapq
import os
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np

from stillroom.images.listing import INDEXED, Listing, ListingWriter, keep_listing, kept_at, map_listing, sample
from stillroom.images.source import FileReader, Source, from_paths, label_by_folder, report

SYSTEM_FOLDERS = frozenset({"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information"})
"""Folders that systems fill with copies and thumbnails of a user's images, without hiding them by a dot."""
ImageFiles = Source
"""The name that a source had while every image was a file."""
LARGE_LIST = 2**23
"""Bytes of a file list from which on its listing is kept; 100,000 lines have about as many."""
_CHECKED = 1000  # images of a kept listing whose size and time of modification are compared


def refuse_missing_folder(folder: Path) -> None:
    """Raise ValueError if there is no such folder."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")


def refuse_missing_images(source: Path) -> None:
    """Raise ValueError if there is no such image folder or file list; its contents are not read."""
    if not source.is_file():
        refuse_missing_folder(source)


def read_unlabelled(source: str | Path) -> Source:
    """List every image below a folder, in the order of their paths, or the images of a file list.

    A file list is a text file, one path per line, relative to the list's own folder or absolute; `#` begins a comment.

    Raises:
        ValueError: missing or empty folder or list, or listed files that do not exist.
    """
    root = Path(source)
    if root.is_file():
        return _read_list(root)
    refuse_missing_folder(root)
    files = _read_folder(root)
    if not len(files):
        raise ValueError(f"{root} holds no images, in subfolders neither: expected a format that Pillow decodes")
    return files


def read_images(images: Path) -> Source:
    """List one image, or those of a folder or of a file list; see `read_unlabelled`."""
    is_image = images.is_file() and images.suffix != ".txt"
    return from_paths([images.resolve()]) if is_image else read_unlabelled(images)


def png_names(files: Source) -> list[Path]:
    """The relative path of the PNG that is written for each image; ValueError if two images would share one."""
    names = [file.relative_to(files.root).with_suffix(".png") for file in files.paths]
    if len({*names}) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise ValueError(f"two images of {files.root} would share the PNG {twice}: rename one of them")
    return names


def read_labelled(folder: str | Path, classes: Sequence[str] | None = None) -> Source:
    """List an image folder: one subfolder per class, images in it; or a file list of such images.

    Args:
        folder: the folder of the class folders, or the file list.
        classes: the expected classes (those of the training set), in label order; None: the subfolders, sorted.

    Raises:
        ValueError: missing or empty folder, no class folders, images beside them, a class without images or with images
            in subfolders only, classes that differ.
    """
    root = Path(folder)
    if root.is_file():
        return label_by_folder(_read_list(root), classes)
    refuse_missing_folder(root)
    names = [entry.name for entry in root.iterdir() if not _is_hidden(entry.name) and entry.is_dir()]
    if not names:
        raise ValueError(f"{root} holds no class folders: expected {root.name}/<class>/<image>")
    return label_by_folder(_read_folder(root), classes, names)


def _read_list(file: Path) -> Source:
    """List the images that a text file names."""
    size = file.stat().st_size
    if size < LARGE_LIST:
        listing = _write_list(file, ListingWriter())
    else:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        place = file.resolve()

        def is_current(kept: Listing) -> bool:
            return kept.meta["list"] == digest and _is_unchanged(FileReader(Path(kept.meta["root"]), kept))

        listing = keep_listing(
            kept_at("list", str(place)),
            str(file),
            ("sizes", "modified"),
            lambda writer: _write_list(file, writer, list=digest),
            is_current,
        )
    root = Path(listing.meta["root"])
    return Source(root, listing, FileReader(root, listing))


def _write_list(file: Path, writer: ListingWriter, **meta: str) -> Listing:
    """Write the paths of a file list, whole, and say how long their common folder is."""
    folder, common, absent, first_absent = os.path.join(file.resolve().parent, ""), "", 0, ""  # noqa: PTH118
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for line in map(str.strip, lines):
                if not line or line.startswith("#"):
                    continue
                path = line if line.startswith("/") else folder + line
                if "//" in path or "/./" in path or path.endswith(("/", "/.")):
                    path = str(Path(path))
                try:
                    stat = os.stat(path)  # noqa: PTH116  # of a million files: a Path each would take as long
                    is_absent = not S_ISREG(stat.st_mode)
                except (OSError, ValueError):
                    is_absent = True
                if is_absent:
                    absent, first_absent = absent + 1, first_absent or path
                    continue
                if not common or not path.startswith(common):
                    parent = os.path.dirname(path)  # noqa: PTH120
                    common = os.path.join(os.path.commonpath([common or parent, parent]), "")  # noqa: PTH118
                writer.add(os.fsencode(path), *((stat.st_size, stat.st_mtime_ns) if writer.columns else ()))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a list of images: expected text with one path per line") from error
    if absent:
        raise ValueError(f"{file} lists {absent} files that do not exist, the first is {first_absent}")
    if not len(writer):
        raise ValueError(f"{file} lists no images")
    return writer.finish(root=str(Path(common)), skip=len(os.fsencode(common)), **meta)


def _read_folder(root: Path) -> Source:
    """List the images below a folder; the listing of a large one is kept, and mapped while no folder has changed."""
    place = kept_at("folder", os.path.realpath(root), sorted(image_suffixes()))

    def is_current(kept: Listing) -> bool:
        try:
            folders = {name: (root / name).stat().st_mtime_ns for name in kept.meta["folders"]}
        except OSError:
            return False
        return folders == kept.meta["folders"] and _is_unchanged(FileReader(root, kept))

    if (listing := map_listing(place, is_current)) is None:
        found = _Walk(root, image_suffixes())
        if found.count < INDEXED:
            listing = found.write(ListingWriter())
        else:
            listing = keep_listing(place, str(root), ("sizes", "modified"), found.write, is_current)
    report_left_out(root, listing.meta)
    return Source(root, listing, FileReader(root, listing), left_out=listing.meta["left_out"])


def _is_unchanged(reader: FileReader) -> bool:
    """Whether some files still have the sizes and times that their listing holds."""
    rows, columns = np.array(sample(len(reader.listing), _CHECKED)), reader.listing.columns
    try:
        stats = [os.stat(reader.where(row)) for row in rows.tolist()]  # noqa: PTH116
    except OSError:
        return False
    now = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
    return now == [*zip(columns["sizes"][rows].tolist(), columns["modified"][rows].tolist(), strict=True)]


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
    found = _Walk(root, image_suffixes() if suffixes is None else suffixes)
    report_left_out(root, {"left_out": found.left_out, "examples": found.examples})
    return tuple(root / name for name in found), dict(found.left_out)


def report_left_out(root: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Say on stderr which files of a folder are left out, by reason, each with an example."""
    if reasons := found["left_out"]:
        listed = (f"{count} {why} ({found['examples'][why]})" for why, count in reasons.items())
        report(f"left out of {root}: {', '.join(listed)}")


class _Walk:
    """The files below a folder, see `walk`: the names in each folder as one string, so that millions fit."""

    def __init__(self, root: Path, suffixes: Collection[str]) -> None:
        self.root, self.suffixes = str(root), suffixes
        self.left_out: defaultdict[str, int] = defaultdict(int)
        self.examples: dict[str, str] = {}
        self.folders: dict[str, int] = {}  # entered, relative, in the order in which they were: time of modification
        self.count = 0
        self._names: dict[str, str] = {}
        self._entered: set[tuple[int, int]] = set()
        self._folders: deque[str] = deque([""])
        self._links: deque[str] = deque()
        while self._folders or self._links:
            self._enter((self._folders or self._links).popleft())

    def __iter__(self) -> Iterator[str]:
        """The names of the files, in the order of their parts, as paths are sorted."""
        below: defaultdict[str, list[str]] = defaultdict(list)
        for folder in self.folders:
            if folder:
                parent, _, name = folder.rpartition("/")
                below[parent].append(name)

        def inside(folder: str) -> Iterator[str]:
            files = ((name, False) for name in self._names[folder].split("\0") if name)
            for name, is_folder in heapq.merge(files, ((name, True) for name in sorted(below[folder]))):
                path = f"{folder}/{name}" if folder else name
                if is_folder:
                    yield from inside(path)
                else:
                    yield path

        return inside("")

    def write(self, writer: ListingWriter) -> Listing:
        """Write the names, with the sizes and times that a kept listing has."""
        for name in self:
            numbers: tuple[int, ...] = ()
            if writer.columns:
                stat = os.stat(f"{self.root}/{name}")  # noqa: PTH116
                numbers = (stat.st_size, stat.st_mtime_ns)
            writer.add(os.fsencode(name), *numbers)
        return writer.finish(left_out=dict(self.left_out), examples=self.examples, folders=self.folders)

    def _enter(self, folder: str) -> None:
        place = os.path.join(self.root, folder) if folder else self.root  # noqa: PTH118
        stat = os.stat(place)  # noqa: PTH116
        if (stat.st_dev, stat.st_ino) in self._entered:
            self._leave_out("link to a folder already entered", folder)
            return
        self._entered.add((stat.st_dev, stat.st_ino))
        self.folders[folder] = stat.st_mtime_ns
        names: list[str] = []
        with os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                self._sort(entry, f"{folder}/{entry.name}" if folder else entry.name, names)
        self._names[folder] = "\0".join(names)
        self.count += len(names)

    def _sort(self, entry: os.DirEntry[str], path: str, names: list[str]) -> None:
        is_link = entry.is_symlink()
        target = Path(entry.path) if is_link else entry  # a Path answers for links that lead nowhere, or in a circle
        if _is_hidden(entry.name):
            below = not is_link and entry.is_dir()
            self._leave_out("hidden", path, sum(len(n) for _, _, n in os.walk(entry.path)) if below else 1)
        elif target.is_dir():
            (self._links if is_link else self._folders).append(path)
        elif not target.is_file():
            self._leave_out("broken link, or no regular file", path)
        elif _suffix(entry.name) not in self.suffixes:
            self._leave_out("not an image", path)
        else:
            names.append(entry.name)

    def _leave_out(self, reason: str, path: str, count: int = 1) -> None:
        if count:
            self.left_out[reason] += count
            self.examples.setdefault(reason, path)


def _suffix(name: str) -> str:
    """The suffix of a file's name, in lower case, as `Path.suffix` takes it."""
    dot = name.rfind(".")
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


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


def shuffled_by_class(labels: Sequence[int], seed: int) -> dict[int, list[int]]:
    """The indices of each class's images, in a random order given by seed and class: any first ones are a sample."""
    indices: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for index, label in enumerate(labels):
        indices[label].append(index)
    return {
        label: np.random.default_rng([seed, label]).permutation(members).tolist() for label, members in indices.items()
    }


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS
