"""Where files lie: on this machine, or at any address of fsspec, such as s3://bucket/folder."""

import os
import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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

    is_local = False

    @abstractmethod
    def entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        """The names of all that lies in a folder itself, and whether each is a folder."""

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
    def open(self, path: str) -> Any:
        """Open a file to read bytes of it, from its beginning on."""

    @abstractmethod
    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes of a file, or those from `start` to `stop`; OSError if it cannot be read."""


class LocalStorage(Storage):
    """Files of this machine; the last ones stay open. Processes that are forked share them."""

    is_local = True

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalStorage, ()

    def entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        with os.scandir(folder) as entries:
            yield from ((entry.name, entry.is_dir()) for entry in entries)

    def exists(self, path: str) -> bool:
        return Path(path).is_file()

    def stat(self, path: str) -> tuple[int, str]:
        stat = Path(path).stat()
        return stat.st_size, str(stat.st_mtime_ns)

    def open(self, path: str) -> Any:
        return Path(path).open("rb")

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        file = self._open.get(path)
        if file is None:
            file = self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) > _OPEN:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(path)
        return os.pread(file, (os.fstat(file).st_size if stop is None else stop) - start, start)


class RemoteStorage(Storage):
    """Files at addresses of fsspec; each process connects by itself.

    The cloud drivers (s3fs, gcsfs, aiohttp for http) are the user's to install.
    """

    def __init__(self) -> None:
        self._stats: dict[str, tuple[int, str]] = {}

    def entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        files, inner = connect(folder)
        for info in files.ls(inner, detail=True):
            yield info["name"].rstrip("/").rpartition("/")[2], info["type"] == "directory"

    def exists(self, path: str) -> bool:
        files, inner = connect(path)
        try:
            return files.info(inner)["type"] == "file"  # its own `isfile` is False where there is no permission too
        except FileNotFoundError:
            return False

    def stat(self, path: str) -> tuple[int, str]:
        files, inner = connect(path)
        size = files.info(inner)["size"]
        if size is None:
            raise ValueError(f"{path}: its server does not say how many bytes it has, which random reads need")
        return int(size), str(files.ukey(inner))

    def stat_again(self, path: str) -> tuple[int, str]:
        if path not in self._stats:  # once in each process
            self._stats[path] = self.stat(path)
        return self._stats[path]

    def open(self, path: str) -> Any:
        files, inner = connect(path)
        return files.open(inner, "rb")

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        files, inner = connect(path)
        return files.cat_file(inner, start=start, end=stop)


def connect(path: str) -> tuple[Any, str]:
    """The file system of an address, of which fsspec keeps one for each process, and the path in it."""
    from fsspec.core import url_to_fs  # noqa: PLC0415  # most commands read files of this machine

    return url_to_fs(path)


@contextmanager
def refusing(path: str) -> Iterator[None]:
    """Around the first access to an address: what is refused there, or lacks here, becomes a ValueError."""
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"there is no {path}: {error}") from error
    except PermissionError as error:
        raise ValueError(
            f"there is no permission to read {path} ({error}): set the credentials of its driver"
        ) from error
    except ImportError as error:
        raise ValueError(f"{path} needs a driver that is not installed: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
