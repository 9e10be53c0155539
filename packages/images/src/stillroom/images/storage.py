"""Where files lie: on this machine, or at any address of fsspec, such as s3://bucket/folder."""

import os
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

_OPEN = 64  # files that are kept open


def address(path: str | Path) -> str | None:
    """The fsspec address that a path is; None for a path on this machine.

    `Path` makes one slash of two: `Path("s3://bucket/a")` is `s3:/bucket/a`.
    """
    found = re.match(r"([a-z][a-z0-9+.-]+):/+(.*)", str(path), re.DOTALL)
    if found is None or found[1] == "file":
        return None
    return f"{found[1]}://{found[2]}"


def local_path(path: str | Path) -> Path:
    """A path on this machine, of `file:` addresses too."""
    return Path(re.sub(r"^file:/+", "/", str(path)))


class Storage(ABC):
    """Files by their paths, read at any place."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def stat(self, path: str) -> tuple[int, str]:
        """Bytes of a file, and what changes when it is written: its time of modification, or its tag."""

    def stat_again(self, path: str) -> tuple[int, str]:
        """The same before each read, where it costs little."""
        return self.stat(path)

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """Open a file to read it from its beginning."""

    @abstractmethod
    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes of a file, or those from `start` to `stop`; OSError if it cannot be read."""


class LocalStorage(Storage):
    """Files of this machine; the last ones stay open. Processes that are forked share them."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalStorage, ()

    def exists(self, path: str) -> bool:
        return Path(path).is_file()

    def stat(self, path: str) -> tuple[int, str]:
        stat = Path(path).stat()
        return stat.st_size, str(stat.st_mtime_ns)

    def open(self, path: str) -> BinaryIO:
        return Path(path).open("rb")

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        file = self._open.get(path)
        if file is None:
            file = self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) > _OPEN:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(path)
        return os.pread(file, (os.fstat(file).st_size if stop is None else stop) - start, start)
