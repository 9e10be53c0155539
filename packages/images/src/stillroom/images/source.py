"""Encoded images in a fixed order, wherever they lie: their names, labels and bytes. No image is decoded."""

import hashlib
import operator
import os
import sys
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, overload

import numpy as np

from stillroom.images.listing import Listing, ListingWriter, blocks, sample
from stillroom.images.storage import address
from stillroom.runs.results import DatasetRecord

MAX_HASHED = 1000
"""Images of a set whose contents are hashed."""
HASHED_BYTES = 2**20
"""Bytes of each that are, from its beginning."""


class SourceError(ValueError):
    """A source that cannot be read any more: what it was when the run began is gone."""


class Reader(ABC):
    """Where the images of a listing lie, by their rows in it."""

    @abstractmethod
    def read(self, row: int, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes of one image, or those from `start` to `stop`; OSError if it cannot be read."""

    @abstractmethod
    def where(self, row: int) -> str:
        """What a message calls one image."""

    @abstractmethod
    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """Bytes of some images."""

    @abstractmethod
    def stamps(self, rows: np.ndarray) -> Iterator[str]:
        """What changes with the bytes of some images, on this machine: their place, size and modification time."""


@dataclass(frozen=True, eq=False)
class Source:
    """Encoded images in a fixed order, of a folder, a file list, a table, an archive or a data set.

    Args:
        root: folder or file that holds or names the images; their names are relative to it.
        listing: the names of them all.
        reader: where their bytes are.
        rows: which images of the listing these are, in their order; None: all.
        labels: of these images, as indices of `classes`; None for unlabelled images.
        classes: names of the classes.
        left_out: counts the other files of the root, by reason; see `walk` in `stillroom.images.files`.
    """

    root: Path
    listing: Listing
    reader: Reader
    rows: np.ndarray | None = None
    labels: Sequence[int] | None = None
    classes: tuple[str, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.listing) if self.rows is None else len(self.rows)

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image; OSError if it cannot be read, SourceError if its source is gone."""
        return self.reader.read(self._row(index))

    def name(self, index: int) -> str:
        """The name of one image: its path relative to the root, with slashes."""
        return os.fsdecode(self.listing.name(self._row(index)))

    def label(self, index: int) -> int | None:
        """The class of one image, an index of `classes`; None where there are no labels."""
        return None if self.labels is None else int(self.labels[index])

    def where(self, index: int) -> str:
        """What a message calls one image: its path, or its archive and its name in it."""
        return self.reader.where(self._row(index))

    def _row(self, index: int) -> int:
        return index if self.rows is None else int(self.rows[index])

    def all_rows(self) -> np.ndarray:
        """The rows of the images in the listing."""
        return np.arange(len(self)) if self.rows is None else self.rows

    @property
    def paths(self) -> "Paths":
        """The root and each image's name, made when asked for; of a folder or list, the path of its file."""
        return Paths(self)

    @property
    def encoded(self) -> "Encoded":
        """The bytes of each image, read when asked for."""
        return Encoded(self)

    @contextmanager
    def as_file(self, index: int) -> Iterator[Path]:
        """One image as a file of this machine: its own, or a temporary one."""
        if isinstance(self.reader, FileReader):
            yield self.paths[index]
            return
        with TemporaryDirectory() as folder:
            file = Path(folder) / Path(self.name(index)).name
            file.write_bytes(self.read(index))
            yield file

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over each image's name and size in bytes, in order: cheap, and the same for a copy."""
        names, parts = self.listing.names(self.rows), blocks(self.all_rows())
        sizes = chain.from_iterable(self.reader.sizes(rows).tolist() for rows in parts)
        return _sha256(b"%s\0%d" % both for both in zip(names, sizes, strict=True))

    @cached_property
    def content(self) -> str:
        """SHA-256 over the first MiB of at most 1,000 of the images, spread evenly: what their sizes do not show."""
        sampled = sample(len(self), MAX_HASHED)
        return _sha256(self._hash_start(self._row(index)).encode() for index in sampled)

    def _hash_start(self, row: int) -> str:
        try:
            return hashlib.sha256(self.reader.read(row, 0, HASHED_BYTES)).hexdigest()
        except OSError:  # named and counted where images are decoded
            return "unreadable"

    @cached_property
    def stamp(self) -> str:
        """SHA-256 over each image's place, size and modification time, and `content`: for caches on this machine."""
        stamps = chain.from_iterable(self.reader.stamps(rows) for rows in blocks(self.all_rows()))
        return _sha256(stamp.encode(errors="surrogateescape") for stamp in chain(stamps, [self.content]))

    def record(self, broken: int = 0, in_train: int | None = None) -> DatasetRecord:
        """The entry in results.json."""
        return DatasetRecord(
            path=address(self.root) or str(self.root),
            count=len(self),
            fingerprint=self.fingerprint,
            broken=broken,
            content=self.content,
            left_out=self.left_out,
            in_train=in_train,
        )

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Source":
        """Some of the images, in the order of `indices`."""
        chosen = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else as_labels(np.asarray(self.labels, dtype=np.int32)[chosen])
        return replace(self, rows=chosen if self.rows is None else self.rows[chosen], labels=labels)


class Paths(Sequence[Path]):
    """The paths of a source's images; each is made when it is asked for."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Path, ...]: ...
    def __getitem__(self, index: int | slice) -> Path | tuple[Path, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        return self._source.root / self._source.name(range(len(self))[operator.index(index)])

    def __iter__(self) -> Iterator[Path]:
        root = self._source.root
        return (root / os.fsdecode(name) for name in self._source.listing.names(self._source.rows))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as lists have none


class Encoded(Sequence[bytes]):
    """The bytes of a source's images; each image is read when it is asked for."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        chosen = range(len(self))[index]
        return self._source.read(chosen) if isinstance(chosen, int) else [self._source.read(i) for i in chosen]


class FileReader(Reader):
    """Images that are files of this machine, below a folder or anywhere.

    Args:
        root: that the names are relative to.
        listing: the names; sizes and times of modification too, where it is kept.
    """

    def __init__(self, root: Path, listing: Listing) -> None:
        self.root, self.listing = root, listing

    def read(self, row: int, start: int = 0, stop: int | None = None) -> bytes:
        with open(self.where(row), "rb") as opened:  # noqa: PTH123  # a Path for each image costs as much as opening it
            opened.seek(start)
            return opened.read(-1 if stop is None else stop - start)

    def where(self, row: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.listing.name(row)))  # noqa: PTH118

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        if "sizes" in self.listing.columns:
            return self.listing.columns["sizes"][rows]
        return np.fromiter((os.stat(path).st_size for path in self._paths(rows)), np.int64, len(rows))  # noqa: PTH116

    def stamps(self, rows: np.ndarray) -> Iterator[str]:
        if "sizes" in self.listing.columns:  # of a kept listing, all at once: no file is looked at
            yield stamp_at_once(os.path.realpath(self.root), self.listing, rows)
            return
        real_folder = cache(os.path.realpath)
        for path in self._paths(rows):
            stat, (folder, _, name) = os.stat(path), path.rpartition("/")  # noqa: PTH116
            real = os.path.join(real_folder(folder or "/"), name)  # noqa: PTH118
            real = os.path.realpath(path) if os.path.islink(path) else real  # noqa: PTH114
            yield f"{real}\0{stat.st_size}\0{stat.st_mtime_ns}"

    def _paths(self, rows: np.ndarray) -> Iterator[str]:
        root = os.path.join(self.root, "")  # noqa: PTH118
        return (f"{root}{os.fsdecode(name)}" for name in self.listing.names(rows))


def stamp_at_once(place: str, listing: Listing, rows: np.ndarray) -> str:
    """One hash for the place, the names and the numbers of some rows of a kept listing."""
    digest = hashlib.sha256(b"\0".join([os.fsencode(place), *listing.names(rows)]))
    for column in listing.columns.values():
        digest.update(column[rows].tobytes())
    return digest.hexdigest()


def from_paths(
    paths: Sequence[Path],
    *,
    root: Path | None = None,
    labels: Sequence[int] | None = None,
    classes: tuple[str, ...] = (),
    left_out: dict[str, int] | None = None,
) -> Source:
    """Images by their paths, which are below the root.

    Args:
        paths: of the files, in their order.
        root: that names and fingerprint are relative to; None: their common folder.
        labels, classes, left_out: see `Source`.
    """
    if root is None:
        root = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    writer = ListingWriter()
    for path in paths:
        writer.add(os.fsencode(path.relative_to(root).as_posix()))
    listing = writer.finish()
    return Source(root, listing, FileReader(root, listing), None, labels, classes, left_out or {})


def as_labels(labels: np.ndarray) -> array:
    """Labels as a sequence of 4 bytes each."""
    return array("i", labels.astype(np.int32).tobytes())


def count_shared(train: Source | Sequence[Path], test: Source | Sequence[Path], where: Path) -> int:
    """Count the test images that are training images too, byte for byte, and say so on stderr.

    Only images of equal size are opened, and only those with equal ends (where compressed images differ) are read
    whole.

    Args:
        train, test: the images, or their files.
        where: folder of the test images, for the warning.
    """
    sources = [one if isinstance(one, Source) else from_paths(one) for one in (train, test)]
    kept = [one.all_rows() for one in sources]
    keys: list[Callable[[Source, np.ndarray], np.ndarray]] = [
        lambda source, rows: source.reader.sizes(rows),
        partial(_digests, last=4096),
        partial(_digests, last=None),
    ]
    for key in keys:
        of_train, of_test = (key(source, rows) for source, rows in zip(sources, kept, strict=True))
        kept = [kept[0][np.isin(of_train, of_test)], kept[1][np.isin(of_test, of_train)]]
    if count := len(kept[1]):
        report(f"warning: {count} of {len(test)} images of {where} are training images too, byte for byte")
    return count


def _digests(source: Source, rows: np.ndarray, last: int | None) -> np.ndarray:
    """SHA-256 of the last bytes of some images, or of all their bytes."""
    starts = [0] * len(rows) if last is None else (source.reader.sizes(rows) - last).clip(0).tolist()
    read = source.reader.read
    ends = (read(row, start) for row, start in zip(rows.tolist(), starts, strict=True))
    return np.array([hashlib.sha256(end).digest() for end in ends], dtype="S32")


def _sha256(lines: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line + b"\n")
    return digest.hexdigest()


@cache  # a command lists its images several times
def report(line: str) -> None:
    """Print a line on stderr, once and in the main process only."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)
