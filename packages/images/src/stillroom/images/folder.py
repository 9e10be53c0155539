"""The images below a folder, in the order of their paths: one walk for every package."""

import heapq
import os
from collections import defaultdict, deque
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from stillroom.images.formats import image_suffixes, is_hidden, suffix
from stillroom.images.left_out import LeftOut, report_left_out
from stillroom.images.listing import INDEXED, Listing, ListingWriter, keep_listing, kept_at, map_listing, sample
from stillroom.images.source import FileReader, Source

_CHECKED = 1000  # images of a kept listing whose size and time of modification are compared


def read_folder(root: Path) -> Source:
    """List the images below a folder; the listing of a large one is kept, and mapped while no folder has changed."""
    place = kept_at("folder", os.path.realpath(root), sorted(image_suffixes()))

    def is_current(kept: Listing) -> bool:
        try:
            folders = {name: (root / name).stat().st_mtime_ns for name in kept.meta["folders"]}
        except OSError:
            return False
        return folders == kept.meta["folders"] and is_unchanged(FileReader(root, kept))

    if (listing := map_listing(place, is_current)) is None:
        found = _Walk(root, image_suffixes())
        if found.count < INDEXED:
            listing = found.write(ListingWriter())
        else:
            listing = keep_listing(place, str(root), ("sizes", "modified"), found.write, is_current)
    report_left_out(root, listing.meta)
    return Source(root, listing, FileReader(root, listing), left_out=listing.meta["left_out"])


def is_unchanged(reader: FileReader) -> bool:
    """Whether some files still have the sizes and times that their listing holds."""
    rows, columns = np.array(sample(len(reader.listing), _CHECKED)), reader.listing.columns
    try:
        stats = [os.stat(reader.where(row)) for row in rows.tolist()]  # noqa: PTH116
    except (OSError, ValueError):  # also a damaged name
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
    report_left_out(root, found.left_out.meta)
    return tuple(root / name for name in found), found.left_out.counts


class _Walk:
    """The files below a folder, see `walk`: the names in each folder as one string, so that millions fit."""

    def __init__(self, root: Path, suffixes: Collection[str]) -> None:
        self.root, self.suffixes = str(root), suffixes
        self.left_out = LeftOut()
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
        return writer.finish(**self.left_out.meta, folders=self.folders)

    def _enter(self, folder: str) -> None:
        place = os.path.join(self.root, folder) if folder else self.root  # noqa: PTH118
        stat = os.stat(place)  # noqa: PTH116
        if (stat.st_dev, stat.st_ino) in self._entered:
            self.left_out.add("link to a folder already entered", folder)
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
        if is_hidden(entry.name):
            below = not is_link and entry.is_dir()
            self.left_out.add("hidden", path, sum(len(n) for _, _, n in os.walk(entry.path)) if below else 1)
        elif target.is_dir():
            (self._links if is_link else self._folders).append(path)
        elif not target.is_file():
            self.left_out.add("broken link, or no regular file", path)
        elif suffix(entry.name) not in self.suffixes:
            self.left_out.add("not an image", path)
        else:
            names.append(entry.name)
