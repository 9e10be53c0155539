"""Images whose paths a file names: a text list, or a column of a CSV or Parquet table."""

import csv
import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from stat import S_ISREG
from typing import Any

from stillroom.images.folder import is_unchanged
from stillroom.images.formats import suffix
from stillroom.images.labels import Columns, LabelColumn
from stillroom.images.listing import Listing, ListingWriter, keep_listing, kept_at
from stillroom.images.remote import read_remote_rows
from stillroom.images.source import FileReader, Source, as_labels
from stillroom.images.storage import RemoteStorage, Storage, address, local_path

TABLES = frozenset({".csv", ".tsv", ".parquet"})
LARGE_LIST = 2**23
"""Bytes of a file from which on its listing is kept; 100,000 lines have about as many."""

Row = tuple[str, object]
"""A path as a file writes it, and its label; without labels None."""


def read_rows(place: str, storage: Storage, columns: Columns, *, labelled: bool) -> Source:
    """List the images whose paths a file names, relative to its own folder, absolute, or as addresses.

    Args:
        place: of the file: a table by its suffix, else a list, a text file of one path per line; `#` begins a comment.
        storage: where the file lies.
        columns: of a table: the paths and the labels.
        labelled: whether the labels of a table are read, if it has any.

    Raises:
        ValueError: not such a file, no such column, no images, files that do not exist, or labels that are none.
    """
    read = {".csv": _csv_rows, ".tsv": _csv_rows, ".parquet": _parquet_rows}.get(suffix(Path(place).name), _list_rows)
    rows = read(place, storage, columns, labelled)
    if (first := next(rows, None)) is None:
        raise ValueError(f"{place} lists no images")
    rows = chain([first], rows)
    if isinstance(storage, RemoteStorage) or address(first[0]) is not None:
        return read_remote_rows(place, f"{place.rpartition('/')[0]}/", rows)
    return _read_local(Path(place), rows, f"{columns} {labelled}")


def _list_rows(place: str, storage: Storage, columns: Columns, labelled: bool) -> Iterator[Row]:
    try:
        with storage.open(place) as opened, TextIOWrapper(opened, "utf-8-sig") as lines:
            for line in map(str.strip, lines):
                if line.lower().startswith(("<!doctype html", "<html")):
                    raise ValueError(
                        f"{place} is a web page, not a list of images: over HTTP pass a list, a table, zip or tar files"
                    )
                if line and not line.startswith("#"):
                    yield line, None
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not a list of images: expected text with one path per line") from error


def _csv_rows(place: str, storage: Storage, columns: Columns, labelled: bool) -> Iterator[Row]:
    try:
        with storage.open(place) as opened, TextIOWrapper(opened, "utf-8-sig", newline="") as lines:
            table = csv.reader(lines, delimiter="\t" if place.lower().endswith(".tsv") else ",", strict=True)
            names = next(table, [])
            image = names.index(columns.image_in(names, place))
            label = columns.label_in(names, place) if labelled else None
            for row in filter(None, table):  # blank lines are no rows
                if len(row) != len(names):
                    raise ValueError(f"{place}: line {table.line_num} has {len(row)} fields, its header {len(names)}")
                yield row[image], None if label is None else row[names.index(label)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{place} is not a table of comma-separated values ({error})") from error


def _parquet_rows(place: str, storage: Storage, columns: Columns, labelled: bool) -> Iterator[Row]:
    try:
        import pyarrow  # noqa: PLC0415  # only here
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise ValueError(f"{place} needs pyarrow: install stillroom-images[parquet]") from error
    with storage.open(place) as opened:
        try:
            table = parquet.ParquetFile(opened)
        except pyarrow.ArrowException as error:
            raise ValueError(f"{place} is not a Parquet file ({error})") from error
        names = table.schema_arrow.names
        image, label = columns.image_in(names, place), columns.label_in(names, place) if labelled else None
        kind = table.schema_arrow.field(image).type
        of = pyarrow.types
        text = kind.value_type if of.is_dictionary(kind) else kind
        if not (of.is_string(text) or of.is_large_string(text) or of.is_string_view(text)):
            raise ValueError(f"{place}: column {image!r} is {kind}, expected text, the paths of the images")
        for batch in table.iter_batches(columns=[image] if label is None else [image, label]):
            paths = batch.column(image).to_pylist()
            labels = [None] * len(paths) if label is None else batch.column(label).to_pylist()
            for path, value in zip(paths, labels, strict=True):
                yield path or "", math.nan if label is not None and value is None else value


def _read_local(file: Path, rows: Iterable[Row], how: str) -> Source:
    """List the images of a file's rows; the listing of a large file is kept, and mapped while the file is the same."""
    if file.stat().st_size < LARGE_LIST:
        listing = _write(file, rows, ListingWriter())
    else:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()

        def is_current(kept: Listing) -> bool:
            return kept.meta["list"] == digest and is_unchanged(FileReader(Path(kept.meta["root"]), kept))

        place = kept_at("list", os.path.realpath(file), how)
        listing = keep_listing(
            place, str(file), ("sizes", "modified"), lambda writer: _write(file, rows, writer, list=digest), is_current
        )
    root, labels = Path(listing.meta["root"]), listing.columns.get("labels")
    return Source(
        root,
        listing,
        FileReader(root, listing),
        None,
        None if labels is None else as_labels(labels),
        tuple(listing.meta["classes"]),
    )


def _write(file: Path, rows: Iterable[Row], writer: ListingWriter, **meta: Any) -> Listing:
    """Write the paths of a file, whole, and say how long their common folder is."""
    folder, common, absent, first_absent = os.path.join(file.resolve().parent, ""), "", 0, ""  # noqa: PTH118
    labels, is_labelled = LabelColumn(file), False
    for line, label in rows:
        line = str(local_path(line)) if line.startswith("file:") else line
        path = line if line.startswith("/") else folder + line
        if "//" in path or "/./" in path or path.endswith(("/", "/.")):
            path = str(Path(path))
        try:
            stat = os.stat(path)  # noqa: PTH116  # of a million files: a Path each would take as long
            is_file = S_ISREG(stat.st_mode)
        except (OSError, ValueError):
            is_file = False
        if not is_file:
            if address(line) is not None:
                raise ValueError(f"{file} lists files of several file systems, such as {line}: make a list of each")
            absent, first_absent = absent + 1, first_absent or path
            continue
        if not common or not path.startswith(common):
            parent = os.path.dirname(path)  # noqa: PTH120
            common = os.path.join(os.path.commonpath([common or parent, parent]), "")  # noqa: PTH118
        writer.add(os.fsencode(path), *((stat.st_size, stat.st_mtime_ns) if writer.columns else ()))
        if label is not None:
            labels.add(label, line)
            is_labelled = True
    if absent:
        raise ValueError(f"{file} lists {absent} files that do not exist, the first is {first_absent}")
    if not len(writer):
        raise ValueError(f"{file} lists no images")
    numbers, classes = labels.finish() if is_labelled else (None, ())
    skip = len(os.fsencode(common))
    return writer.finish(numbers, root=str(Path(common)), skip=skip, classes=classes, **meta)
