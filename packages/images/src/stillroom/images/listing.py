"""Names of millions of images without a Python object for each: one blob of bytes with offsets, memory-mapped.

A large listing is written once into `$STILLROOM_CACHE/listings` (by default below ~/.cache/stillroom), by the first
process of a machine that needs it, and mapped by all others and by the workers.
"""

import fcntl
import hashlib
import io
import json
import mmap
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from stillroom.backbone.atomic import replace_directory, write_file
from stillroom.backbone.cache_folder import cache_directory, warn_once

VERSION = 2
INDEXED = 100_000
"""Images from which on the listing of a folder or file list is kept; a smaller one is read anew by each command."""
_NAMES, _OFFSETS, _META = "names.bin", "offsets.npy", "index.json"


@dataclass(frozen=True, eq=False)
class Listing:
    """Names of images in a fixed order, and numbers about each.

    Args:
        blob: the names, one behind the other, as the file system encodes them.
        offsets: (n + 1,) where each begins and the last one ends.
        columns: name -> (n,) numbers: `sizes` in bytes, `modified` in nanoseconds, where they are known.
        meta: what else belongs to the listing; its `skip` is the number of bytes to leave out before each name.
        folder: that the listing is mapped from; None: it is in memory.
    """

    blob: bytes | mmap.mmap
    offsets: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __reduce__(self) -> tuple[Any, ...]:  # a worker that is not forked maps the files again
        if self.folder is not None:
            return Listing.load, (self.folder,)
        return Listing, (self.blob, self.offsets, self.columns, self.meta)

    def name(self, row: int) -> bytes:
        """One name."""
        return self.blob[int(self.offsets[row]) + self.meta.get("skip", 0) : int(self.offsets[row + 1])]

    def names(self, rows: np.ndarray | None = None) -> Iterator[bytes]:
        """The names of some rows, in the order of `rows`; None: of all."""
        blob, skip = self.blob, self.meta.get("skip", 0)
        for chosen in blocks(np.arange(len(self)) if rows is None else rows):
            starts, stops = self.offsets[chosen] + skip, self.offsets[chosen + 1]
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
                yield blob[start:stop]

    @classmethod
    def load(cls, folder: Path) -> "Listing":
        """Map a listing that `ListingWriter` wrote."""
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        with (folder / _NAMES).open("rb") as opened:
            blob = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in meta["columns"]}
        return cls(blob, np.load(folder / _OFFSETS, mmap_mode="r"), columns, meta, folder)


class ListingWriter:
    """Makes a listing name by name, in memory or in the files of a folder.

    Args:
        folder: an empty one; None: in memory.
        columns: names of the numbers that come with each name.
    """

    def __init__(self, folder: Path | None = None, columns: Sequence[str] = ()) -> None:
        self.folder = folder
        self._names: BinaryIO = io.BytesIO() if folder is None else (folder / _NAMES).open("wb")
        self._offsets = array("q", [0])
        self.columns = {name: array("q") for name in columns}

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def add(self, name: bytes, *numbers: int) -> None:
        """Append a name and its numbers, one for each column."""
        self._names.write(name)
        self._offsets.append(self._offsets[-1] + len(name))
        for column, number in zip(self.columns.values(), numbers, strict=True):
            column.append(number)

    def finish(self, labels: array | None = None, **meta: Any) -> Listing:
        """Close the listing; `labels` are a column more, `meta` are JSON values."""
        offsets = np.frombuffer(self._offsets, dtype=np.int64)
        columns = {name: np.frombuffer(column, dtype=np.int64) for name, column in self.columns.items()}
        if labels is not None:
            columns["labels"] = np.frombuffer(labels, dtype=np.int32)
        if self.folder is None:
            assert isinstance(self._names, io.BytesIO)
            return Listing(self._names.getvalue(), offsets, columns, meta)
        self._names.close()
        np.save(self.folder / _OFFSETS, offsets)
        for name, column in columns.items():
            np.save(self.folder / f"{name}.npy", column)
        write_file(self.folder / _META, json.dumps({**meta, "version": VERSION, "columns": [*columns]}))
        return Listing.load(self.folder)


def kept_at(*identity: object) -> Path:
    """The folder of the cache that holds the listing of a source, by what names the source."""
    return cache_directory("listings") / hashlib.sha256(repr((VERSION, *identity)).encode()).hexdigest()[:32]


def map_listing(folder: Path, is_current: Callable[[Listing], bool]) -> Listing | None:
    """Map a listing that was kept; None if there is none, if it is damaged, or if it is older than its source."""
    kept = _load_whole(folder)
    return kept if kept is not None and is_current(kept) else None


def _load_whole(folder: Path) -> Listing | None:
    """Map a listing that was kept; None if there is none, if it is replaced just now, or if it is damaged."""
    try:
        kept = Listing.load(folder)
    except Exception:  # noqa: BLE001  # damaged files let NumPy and json raise almost any class
        return None
    offsets, columns = kept.offsets, kept.columns.values()
    is_whole = offsets.ndim == 1 and len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == len(kept.blob)
    return kept if is_whole and all(column.shape == (len(kept),) for column in columns) else None


def keep_listing(
    folder: Path,
    what: str,
    columns: Sequence[str],
    make: Callable[[ListingWriter], Listing],
    is_current: Callable[[Listing], bool],
) -> Listing:
    """Make a listing in the cache and map it; the first process does, the others wait for it.

    Where the cache cannot be written, every process makes it in memory.

    Args:
        folder: see `kept_at`.
        what: the source, as a note on stderr calls it.
        columns: the numbers that `make` writes with each name.
        make: writes the names and finishes the listing.
        is_current: whether a listing that is there by now still is what `make` would make.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_suffix(".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        warn_once(f"{folder.parent} cannot be written ({error.strerror}); the index of the images is not kept")
        return make(ListingWriter(None, columns))
    with lock:
        if (kept := _load_whole(folder)) is not None and is_current(kept):
            return kept
        if folder.exists():
            why = "damaged" if kept is None else "older than what it lists"
            print(f"note: the index of {what} is {why}: it is made again", file=sys.stderr)
        if folder.is_file():
            folder.unlink()
        with replace_directory(folder) as partial:
            make(ListingWriter(partial, columns))
        return Listing.load(folder)


def blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Rows, a few at once: lists of their names and sizes stay small."""
    return (rows[begin : begin + 2**14] for begin in range(0, len(rows), 2**14))


def sample(num_images: int, count: int) -> range:
    """At most `count` rows, spread evenly by an odd step: where images and masks alternate, both are among them."""
    return range(0, num_images, -(-num_images // count) | 1)


def first_twice(listing: Listing, hashes: array) -> tuple[int, int] | None:
    """The rows of two images of one name, found by the hashes of all names; None if there are none."""
    values = np.frombuffer(hashes, np.int64)
    order = np.argsort(values, kind="stable")
    equal = np.flatnonzero(np.diff(values[order]) == 0)
    pairs = ((int(order[place]), int(order[place + 1])) for place in equal)
    return next(((one, two) for one, two in pairs if listing.name(one) == listing.name(two)), None)
