"""Images in tar shards, as WebDataset writes them, read at random by an index of their headers."""

import os
import re
import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.images.formats import image_suffixes, is_hidden, member_name, suffix
from stillroom.images.labels import LabelColumn
from stillroom.images.left_out import LeftOut, report_left_out, why_left_out
from stillroom.images.listing import Listing, ListingWriter, first_twice, keep_listing, kept_at, map_listing
from stillroom.images.source import Reader, Source, SourceError, as_labels, stamp_at_once
from stillroom.images.storage import Storage

CLASSES = "classes.txt"
"""File beside shards: the name of each class, in the order of the labels."""
LABEL = ".cls"
_MAX_LABEL = 1024  # bytes of a member that holds a label
_TAIL = 2**16


def expand(pattern: str) -> list[str]:
    """The paths that a pattern with ranges in braces stands for: `part-{000..011}.tar`; ValueError for empty ranges."""
    fixed, firsts, lasts = (re.split(r"\{(\d+)\.\.(\d+)\}", pattern)[part::3] for part in range(3))
    ranges = [range(int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True)]
    for first, last, numbers in zip(firsts, lasts, ranges, strict=True):
        if not numbers:
            raise ValueError(f"{pattern}: {first}..{last} is an empty range, put the smaller number first")
    paths = []
    for chosen in product(*ranges):
        texts = [str(number).zfill(len(first)) for number, first in zip(chosen, firsts, strict=True)]
        paths.append("".join(chain.from_iterable(zip(fixed, [*texts, ""], strict=True))))
    return paths


def shards_in(entries: Iterable[tuple[str, bool]]) -> list[str]:
    """The shards of a folder that holds shards: tar files, and neither images nor folders beside them.

    Args:
        entries: the name of each thing in the folder, and whether it is a folder; read as far as needed.
    """
    shards = []
    for name, is_folder in entries:
        if is_hidden(name):
            continue
        if is_folder or suffix(name) in image_suffixes():
            return []
        if suffix(name) == ".tar":
            shards.append(name)
    return sorted(shards)


def read_shards(root: Path, shards: Sequence[str], storage: Storage, *, labelled: bool) -> Source:
    """List the images of tar shards; `classes.txt` beside the first one names the classes of integer labels."""
    beside = f"{shards[0].rpartition('/')[0] or '.'}/{CLASSES}"
    names = _class_names(beside, storage) if labelled and storage.exists(beside) else []
    return read_tars(root, shards, storage, names, labelled=labelled)


def _class_names(file: str, storage: Storage) -> list[str]:
    """The names of classes in a file, one per line; ValueError if it is not text, or names a class twice."""
    try:
        names = storage.read(file).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8 ({error}): save it with one name of a class per line") from error
    lines: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if (before := lines.setdefault(name, line)) != line:
            raise ValueError(
                f"{file} names the class {name!r} twice, in lines {before} and {line}: give each class a name of its "
                f"own, such as '{name} 2'"
            )
    return names


def read_tars(
    root: Path, shards: Sequence[str], storage: Storage, class_names: Sequence[str] = (), *, labelled: bool
) -> Source:
    """List the images of tar shards, in the order of the shards and of their members.

    The index is made once, by a scan of the headers, and kept: where each image begins and how many bytes it has. An
    image's label is the member `<key>.cls` beside it, an integer or the name of a class; the key is the image's name up
    to the first dot.

    Args:
        root: the folder, file or pattern that named the shards.
        shards: their paths, in order.
        storage: where they lie.
        class_names: that integer labels are indices of.
        labelled: whether labels are read, if there are any.

    Raises:
        ValueError: no images, two members of one name, a truncated or compressed shard, or labels that are none.
    """
    places = [storage.real_path(shard) for shard in shards]
    state: list[list[Any]] = [[place, *storage.stat(place)] for place in places]
    kept_in = kept_at("tar", places, sorted(image_suffixes()), class_names, labelled)

    def is_current(kept: Listing) -> bool:
        return kept.meta["state"] == state

    def make(writer: ListingWriter) -> Listing:
        scan = _Scan(root, shards, storage, writer, class_names, labelled)
        for shard, (_, size, _) in zip(shards, state, strict=True):
            scan.read(shard, size)
        return scan.finish(state)

    listing = map_listing(kept_in, is_current)
    if listing is None:
        listing = keep_listing(kept_in, str(root), ("sizes", "begins"), make, is_current)
    report_left_out(root, listing.meta)
    meta, labels = listing.meta, listing.columns.get("labels")
    return Source(
        root,
        listing,
        TarReader(shards, listing, storage),
        None,
        None if labels is None else as_labels(labels),
        tuple(meta["classes"]),
        meta["left_out"],
    )


class _Scan:
    """The headers of all shards, one after the other, written into a listing."""

    def __init__(
        self,
        root: Path,
        shards: Sequence[str],
        storage: Storage,
        writer: ListingWriter,
        class_names: Sequence[str],
        labelled: bool,
    ) -> None:
        self.root, self.shards, self.storage, self.writer, self.labelled = root, shards, storage, writer, labelled
        self.labels = LabelColumn(root, class_names)
        self.firsts: list[int] = []
        self.left_out = LeftOut()
        self.num_labelled = 0
        self._hashes = array("q")

    def read(self, shard: str, size: int) -> None:
        """Add the images of one shard, each with the label that lies beside it."""
        self.firsts.append(len(self.writer))
        images: list[tuple[str, int, int]] = []
        labels: dict[str, str] = {}
        with self.storage.open(shard) as opened:
            for member, tar in _members(shard, opened, size):
                name = member_name(member.name)
                if member.isdir():
                    continue
                if not member.isfile():
                    is_link = member.islnk() or member.issym()
                    self.left_out.add("link in a tar file" if is_link else "no regular file", name)
                elif (why := why_left_out(name)) is None:
                    if member.issparse():
                        raise ValueError(f"{shard}: {name} is stored with holes (tar --sparse): pack it without")
                    images.append((name, member.size, member.offset_data))
                elif why == "not an image" and suffix(name) == LABEL and member.size <= _MAX_LABEL:
                    if self.labelled:
                        content = tar.extractfile(member)
                        assert content is not None, "a regular file"
                        labels[_key(name)] = content.read().decode("utf-8", "backslashreplace")
                else:
                    self.left_out.add(why, name)
        for name, num_bytes, begin in images:
            encoded = os.fsencode(name)
            self.writer.add(encoded, num_bytes, begin)
            self._hashes.append(hash(encoded))
            if (label := labels.get(_key(name))) is not None:
                self.labels.add(label, name if shard == str(self.root) else f"{shard}: {name}")
                self.num_labelled += 1

    def finish(self, state: list[list[Any]]) -> Listing:
        """Close the listing, if every image has a name of its own, and a label if any has."""
        count = len(self.writer)
        if not count:
            raise ValueError(f"{self.root} holds no images: expected members of formats that Pillow decodes")
        if self.num_labelled not in (0, count):
            raise ValueError(f"{self.root} has labels ({LABEL}) of {self.num_labelled} of its {count} images only")
        labels, classes = self.labels.finish() if self.num_labelled else (None, ())
        listing = self.writer.finish(labels, state=state, firsts=self.firsts, classes=classes, **self.left_out.meta)
        if (twice := first_twice(listing, self._hashes)) is not None:
            places = [self.shards[bisect_right(self.firsts, row) - 1] for row in twice]
            raise ValueError(
                f"{places[0]} and {places[1]} both hold {os.fsdecode(listing.name(twice[0]))}: each image needs a name "
                f"of its own, rename or remove one"
            )
        return listing


def _members(shard: str, opened: Any, size: int) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The members of a tar file.

    Raises:
        ValueError: it is no tar file, a compressed one, or not whole.
    """
    name, end = "", 0
    try:
        with tarfile.open(fileobj=opened, mode="r:") as tar:
            while (member := tar.next()) is not None:
                name, end = member.name, member.offset_data + member.size
                if member.isreg() and not member.issparse() and end > size:
                    raise ValueError(
                        f"{shard} is truncated: its last member {name} ends at byte {end}, the file has {size}; "
                        f"copy it again"
                    )
                yield member, tar
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            end = tar.offset
    except tarfile.TarError as error:
        if name:
            raise ValueError(f"{shard} is damaged after its member {name} ({error}): copy it again") from error
        raise ValueError(f"{shard} cannot be read at random ({error}): pass uncompressed tar files") from error
    opened.seek(end)
    if len(tail := opened.read(_TAIL)) < tarfile.BLOCKSIZE:
        raise ValueError(f"{shard} is truncated: no end follows its last member {name}; copy it again")
    if tail.strip(b"\0"):
        raise ValueError(f"{shard} goes on after its end, or is damaged there: join tar files by `tar -A`, not by cat")


def _key(name: str) -> str:
    """What WebDataset calls the members of one sample by: the name up to the first dot behind its folders."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


class TarReader(Reader):
    """Images in tar shards, read by their places in them.

    Args:
        shards: their paths, in order.
        listing: names, sizes and places, made by `read_tars`.
        storage: where the shards lie.
    """

    def __init__(self, shards: Sequence[str], listing: Listing, storage: Storage) -> None:
        self.shards, self.listing, self.storage = shards, listing, storage

    def read(self, row: int, start: int = 0, stop: int | None = None) -> bytes:
        number = self._shard(row)
        shard, (_, size, version) = self.shards[number], self.listing.meta["state"][number]
        begin, num_bytes = (int(self.listing.columns[name][row]) for name in ("begins", "sizes"))
        stop = num_bytes if stop is None else min(stop, num_bytes)
        try:
            if [*self.storage.stat_again(shard)] != [size, version]:
                raise SourceError(f"{shard} has changed since its index was made: start again, it is then indexed anew")
            content = self.storage.read(shard, begin + start, begin + stop)
        except OSError as error:
            raise SourceError(
                f"{shard} cannot be read any more ({error.strerror or error}): put it back, then resume"
            ) from error
        if len(content) < stop - start:
            raise SourceError(f"{shard} has become shorter than its index says: copy it again")
        return content

    def where(self, row: int) -> str:
        return f"{self.shards[self._shard(row)]}: {os.fsdecode(self.listing.name(row))}"

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        return self.listing.columns["sizes"][rows]

    def stamps(self, rows: np.ndarray) -> Iterator[str]:
        yield stamp_at_once(str(self.listing.meta["state"]), self.listing, rows)

    def _shard(self, row: int) -> int:
        return bisect_right(self.listing.meta["firsts"], row) - 1
