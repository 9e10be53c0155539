"""Files that are either whole or not there: written aside, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def refuse_existing(out: Path) -> None:
    """Refuse a place that is taken, by a ValueError."""
    if out.exists():
        raise ValueError(f"{out} exists: choose another --out")


def refuse_missing(file: Path) -> None:
    """Refuse a file that is not there, by a ValueError."""
    if not file.is_file():
        raise ValueError(f"there is no {file}")


@contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """A temporary sibling to write into; it takes the place of `path` when the block ends well, else it goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    aside.mkdir()
    try:
        yield aside
        if path.exists():
            old = path.with_name(f".{path.name}.{uuid4().hex[:8]}.old")
            path.rename(old)
            aside.rename(path)
            shutil.rmtree(old)
        else:
            aside.rename(path)
    finally:
        if aside.exists():
            shutil.rmtree(aside)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file aside and rename it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    try:
        with aside.open("wb") as opened:
            opened.write(content.encode() if isinstance(content, str) else content)
            opened.flush()
            os.fsync(opened.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
