"""Labels that stand beside images: integers, or names of classes."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns of a table of images: CSV, Parquet, or a data set of Hugging Face's `datasets`."""

    image: str | None = None
    """Column of the images, or of their paths. None: `image`, `path`, `file` or `file_name`, the first of these."""
    label: str | None = None
    """Column of the labels, integers or names of classes; read where labels are needed. None: `label` or `class`."""

    def image_in(self, names: Sequence[str], table: object) -> str:
        """The column of the images among `names`; ValueError if there is none."""
        return _column(self.image, ("image", "path", "file", "file_name"), names, table, "--columns.image")

    def label_in(self, names: Sequence[str], table: object) -> str | None:
        """The column of the labels among `names`; None if there is none and none was named."""
        if self.label is None and not {"label", "class"} & {*names}:
            return None
        return _column(self.label, ("label", "class"), names, table, "--columns.label")


USUAL = Columns()


def _column(named: str | None, usual: Sequence[str], names: Sequence[str], table: object, flag: str) -> str:
    found = next((name for name in usual if name in names), None) if named is None else named
    if not names:
        raise ValueError(f"{table} has no columns: its first line should name them")
    if found is None or found not in names:
        what = "none of the usual columns" if named is None else f"no column {named!r}"
        raise ValueError(f"{table} has {what}, only {', '.join(names)}: pass {flag} one of them")
    return found


class LabelColumn:
    """Labels as they are read, each distinct value once.

    Args:
        source: what an error calls the place of the labels.
        names: of the classes that integers are indices of; empty: an integer is its own name.
    """

    def __init__(self, source: object, names: Sequence[str] = ()) -> None:
        self._source, self._names = source, names
        self._values: dict[str, int] = {}
        self._rows = array("i")

    def add(self, value: object, image: str) -> None:
        """Append the label of an image.

        Raises:
            ValueError: neither an integer nor a name.
        """
        text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
        if not text or (_is_number(text) and not _is_integer(text)):
            raise ValueError(
                f"{self._source} labels {image} by {value!r}, which is neither an integer nor the name of a class"
            )
        self._rows.append(self._values.setdefault(text, len(self._values)))

    def finish(self) -> tuple[array, tuple[str, ...]]:
        """The labels, and the classes that they are indices of: in the order of their numbers, or sorted by name.

        Raises:
            ValueError: integers beside names, or without a name in the list of names.
        """
        integers = [value for value in self._values if _is_integer(value)]
        if integers and len(integers) < len(self._values):
            other = next(value for value in self._values if not _is_integer(value))
            raise ValueError(f"{self._source} has integers and names as labels, such as {integers[0]} and {other!r}")
        if integers and self._names:
            if outside := [value for value in integers if not 0 <= int(value) < len(self._names)]:
                raise ValueError(f"{self._source} has the label {outside[0]}, and {len(self._names)} names of classes")
            classes, label_of = tuple(self._names), {value: int(value) for value in integers}
        else:
            ordered = sorted(self._values, key=int if integers else str)
            classes, label_of = tuple(ordered), {value: label for label, value in enumerate(ordered)}
        table = np.array([label_of[value] for value in self._values], dtype=np.int32)
        return array("i", table[np.frombuffer(self._rows, np.int32)].tobytes()), classes


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
