"""Images at addresses of fsspec: below a folder, or named by a list or a table."""

import hashlib
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.images.labels import LabelColumn
from stillroom.images.left_out import LeftOut, report_left_out, why_left_out
from stillroom.images.listing import Listing, ListingWriter
from stillroom.images.source import Reader, Source, as_labels, stamp_at_once
from stillroom.images.storage import RemoteStorage, address, connect, driver_errors, known_size, refusing


class RemoteReader(Reader):
    """Images that are files of their own at addresses.

    Args:
        base: what the names of the listing follow.
        listing: names, sizes and a number that changes with the content, where the file system knows one.
    """

    def __init__(self, base: str, listing: Listing) -> None:
        self.base, self.listing, self.storage = base, listing, RemoteStorage()

    def read(self, row: int, start: int = 0, stop: int | None = None) -> bytes:
        if start and stop is None:
            stop = int(self.listing.columns["sizes"][row])
        return self.storage.read(self.where(row), start, stop)

    def where(self, row: int) -> str:
        return self.base + os.fsdecode(self.listing.name(row))

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        return self.listing.columns["sizes"][rows]

    def stamps(self, rows: np.ndarray) -> Iterator[str]:
        yield stamp_at_once(self.base, self.listing, rows)


def read_remote_folder(place: str) -> Source:
    """List the images below a folder at an address, in the order of their paths; every process lists it anew."""
    files, inner = connect(place)
    base, prefix = place.rstrip("/") + "/", inner.rstrip("/") + "/"
    writer = ListingWriter(columns=("sizes", "versions"))
    left_out = LeftOut()
    with driver_errors():
        found = files.find(inner, detail=True)
    for path in sorted(found, key=lambda path: path.replace("/", "\0")):
        name, info = path.removeprefix(prefix), found[path]
        if (why := why_left_out(name)) is not None:
            left_out.add(why, name)
        else:
            writer.add(os.fsencode(name), known_size(base + name, info["size"]), _version(info))
    report_left_out(Path(place), left_out.meta)
    listing = writer.finish()
    return Source(Path(place), listing, RemoteReader(base, listing), left_out=left_out.counts)


def read_remote_rows(what: str, folder: str, rows: Iterable[tuple[str, object]]) -> Source:
    """List the images that a list or a table names by addresses, or relative to its own folder at one.

    Raises:
        ValueError: no images, some that do not exist, or addresses of several file systems.
    """
    paths: list[str] = []
    labels, is_labelled = LabelColumn(what), False
    for line, label in rows:
        paths.append(address(line) or folder + line)
        if label is not None:
            labels.add(label, line)
            is_labelled = True
    if not paths:
        raise ValueError(f"{what} lists no images")
    protocols = {path.partition("://")[0] for path in paths}
    if len(protocols) > 1 or not all(address(path) for path in paths):
        raise ValueError(f"{what} lists files of several file systems, such as {paths[0]}: make a list of each")
    with refusing(paths[0]):  # the list itself may lie on this machine
        sizes = _sizes(what, paths)
    protocol = paths[0].partition("://")[0]
    parents = [path.partition("://")[2].rpartition("/")[0] for path in paths]
    base = "/".join(filter(None, [f"{protocol}:/", posixpath.commonpath(parents), ""])) + "/"
    writer = ListingWriter(columns=("sizes",))
    for path, size in zip(paths, sizes, strict=True):
        writer.add(os.fsencode(path.removeprefix(base)), size)
    numbers, classes = labels.finish() if is_labelled else (None, ())
    listing = writer.finish()
    kept = None if numbers is None else as_labels(np.frombuffer(numbers, np.int32))
    return Source(Path(base), listing, RemoteReader(base, listing), None, kept, classes)


def _sizes(what: str, paths: Sequence[str]) -> list[int]:
    """The bytes of the files that a list names, all of one file system."""
    files, _ = connect(paths[0])
    inner = [connect(path)[1] if "::" in path else files._strip_protocol(path) for path in paths]
    try:
        with driver_errors():
            sizes = files.sizes(inner)
    except FileNotFoundError as error:
        raise ValueError(f"{what} lists files that do not exist, such as {error}") from error
    return [known_size(path, size) for path, size in zip(paths, sizes, strict=True)]


def _version(info: Mapping[str, Any]) -> int:
    """A number that changes when a file is written again, where its file system says anything about that."""
    said = [str(info.get(name)) for name in ("ETag", "etag", "mtime", "LastModified", "updated", "created")]
    return int.from_bytes(hashlib.sha256("\0".join(said).encode()).digest()[:7])
