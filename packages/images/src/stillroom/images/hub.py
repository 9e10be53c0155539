"""Images in a data set that Hugging Face's `datasets` saved on disk, map style."""

import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.images.labels import Columns, LabelColumn
from stillroom.images.listing import Listing, ListingWriter, first_twice, keep_listing, kept_at, map_listing
from stillroom.images.source import Reader, Source, SourceError, as_labels, stamp_at_once

FILES = frozenset({"state.json", "dataset_dict.json"})
"""Files that `save_to_disk` writes, of a data set and of several."""
_ROWS = 1000  # read at once


def read_dataset(root: Path, columns: Columns, *, labelled: bool) -> Source:
    """List the images of a saved data set, in the order of its rows; they are named by their `path`, or by their row.

    Args:
        root: the folder that `save_to_disk` wrote.
        columns: of the images, encoded, and of the labels.
        labelled: whether labels are read, if there are any.

    Raises:
        ValueError: several data sets (train, test), no column of images, rows without an image, labels that are none;
            or `datasets` is not installed.
    """
    rows = open_dataset(root, columns)
    image, label = columns.image_in(rows.column_names, root), columns.label_in(rows.column_names, root)
    if labelled and label is None:
        raise ValueError(
            f"{root} has no column of labels, only {', '.join(rows.column_names)}: pass --columns.label, or add one"
        )
    label = label if labelled else None

    def is_current(kept: Listing) -> bool:
        return kept.meta["state"] == rows._fingerprint

    def make(writer: ListingWriter) -> Listing:
        return _write(root, rows, image, label, writer)

    place = kept_at("datasets", os.path.realpath(root), image, label)
    listing = map_listing(place, is_current)
    if listing is None:
        listing = keep_listing(place, str(root), ("sizes",), make, is_current)
    labels = listing.columns.get("labels")
    return Source(
        root,
        listing,
        DatasetReader(root, columns, image, listing),
        None,
        None if labels is None else as_labels(labels),
        tuple(listing.meta["classes"]),
    )


def open_dataset(root: Path, columns: Columns) -> Any:
    """Map a saved data set, its images not decoded; see `read_dataset` for what is refused."""
    try:
        import datasets  # noqa: PLC0415  # only here
    except ImportError as error:
        raise ValueError(f"{root} needs Hugging Face's datasets: install stillroom-images[datasets]") from error
    with refusing_damage(root):
        rows = datasets.load_from_disk(str(root))
    if isinstance(rows, datasets.DatasetDict):
        raise ValueError(f"{root} holds several data sets, {', '.join(rows)}: pass {root / next(iter(rows))}")
    image = columns.image_in(rows.column_names, root)
    if not isinstance(rows.features[image], datasets.Image):
        raise ValueError(f"{root}: column {image!r} is {rows.features[image]}, expected images: pass --columns.image")
    return rows.cast_column(image, datasets.Image(decode=False))


@contextmanager
def refusing_damage(root: Path) -> Iterator[None]:
    """Around reading a saved data set: damaged files, from which its libraries raise almost any class."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{root} is not a whole data set that `save_to_disk` wrote ({str(error) or type(error).__name__}): "
            f"save or copy it again"
        ) from error


def _write(root: Path, rows: Any, image: str, label: str | None, writer: ListingWriter) -> Listing:
    feature = rows.features[label] if label is not None else None
    labels, names, hashes = LabelColumn(root, getattr(feature, "names", ())), ListingWriter(), array("q")
    sizes: list[int] = []
    for first in range(0, len(rows), _ROWS):
        with refusing_damage(root):
            part = rows[first : first + _ROWS]
        for number, one in enumerate(part[image], first):
            if one is None or (one["bytes"] is None and one["path"] is None):
                raise ValueError(f"{root}: row {number} has no image")
            name = os.fsencode(one["path"] or f"{number:09d}")
            names.add(name)
            hashes.append(hash(name))
            sizes.append(len(one["bytes"]) if one["bytes"] is not None else Path(one["path"]).stat().st_size)
            if label is not None:
                labels.add(part[label][number - first], os.fsdecode(name))
    if not sizes:
        raise ValueError(f"{root} has no rows")
    listed = names.finish()
    are_usable = first_twice(listed, hashes) is None and not any(b".." in name.split(b"/") for name in listed.names())
    for number, (name, size) in enumerate(zip(listed.names(), sizes, strict=True)):
        writer.add(name.lstrip(b"/") if are_usable else b"%09d/%s" % (number, name.rpartition(b"/")[2]), size)
    found, classes = labels.finish() if label is not None else (None, ())
    return writer.finish(found, state=rows._fingerprint, classes=classes)


class DatasetReader(Reader):
    """Images in a saved data set; each process maps it by itself.

    Args:
        root, columns: see `read_dataset`.
        image: the column of the images.
        listing: names and sizes, made by `read_dataset`.
    """

    def __init__(self, root: Path, columns: Columns, image: str, listing: Listing) -> None:
        self.root, self.columns, self.image, self.listing = root, columns, image, listing

    def __reduce__(self) -> tuple[Any, ...]:
        return DatasetReader, (self.root, self.columns, self.image, self.listing)

    @cached_property
    def _rows(self) -> Any:
        try:
            return open_dataset(self.root, self.columns)
        except ValueError as error:
            raise SourceError(f"{error}, then resume") from error

    def read(self, row: int, start: int = 0, stop: int | None = None) -> bytes:
        rows = self._rows
        try:
            one = rows[row][self.image]
        except ValueError as error:  # of Arrow
            raise OSError(f"damaged in its data set: {error}") from error
        content = one["bytes"] if one["bytes"] is not None else Path(one["path"]).read_bytes()
        return content[start:stop]

    def where(self, row: int) -> str:
        return f"{self.root}: row {row}, {os.fsdecode(self.listing.name(row))}"

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        return self.listing.columns["sizes"][rows]

    def stamps(self, rows: np.ndarray) -> Iterator[str]:
        yield stamp_at_once(f"{os.path.realpath(self.root)} {self.listing.meta['state']}", self.listing, rows)
