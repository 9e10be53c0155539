"""Files that are written atomically: complete, or not there."""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def refuse_existing(out: Path) -> None:
    """Raise ValueError if the path `out` exists."""
    if out.exists():
        raise ValueError(f"{out} exists: choose another --out")
    refuse_unwritable(out)


def refuse_unwritable(out: Path) -> None:
    """Raise ValueError if the path `out` could not be created, before hours of work for it."""
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise ValueError(f"{out} cannot be created: {nearest} is not a folder that can be written to")


def refuse_missing(file: Path) -> None:
    """Raise ValueError if there is no such file."""
    if not file.is_file():
        raise ValueError(f"there is no {file}")


@contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """A temporary sibling to write into; it replaces `path` if the block ends without an error, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            old = path.with_name(f".{path.name}.{uuid4().hex[:8]}.old")
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old)
        else:
            partial.rename(path)
    finally:
        if partial.exists():
            shutil.rmtree(partial)


def remove_partials(path: Path) -> None:
    """Remove what killed processes left of files and folders that they were writing at `path`, or in it.

    Only for a process that nobody else writes there with; see `stillroom.runs.claims`.
    """
    for pattern in (8 * "[0-9a-f]" + ".partial", 8 * "[0-9a-f]" + ".old"):  # not those of `path` with more in its name
        for left in [*path.parent.glob(f".{glob.escape(path.name)}.{pattern}"), *path.rglob(f".*.{pattern}")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def write_file(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file atomically: a temporary sibling is written and renamed to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as opened:
            opened.write(content.encode() if isinstance(content, str) else content)
            opened.flush()
            os.fsync(opened.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
