"""Where files lie: on this machine, or at any address of fsspec, such as s3://bucket/folder."""

import io
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

    `Path` makes one slash of two: `Path("s3://bucket/a")` is `s3:/bucket/a`. Several may be chained, as in
    `simplecache::s3://bucket/a`.
    """
    protocol = r"[a-z][a-z0-9+.-]+"
    found = re.match(rf"(?:{protocol}::)*({protocol}):/", str(path))
    if found is None or found[0] == "file:/":
        return None
    slashes = {"file": "///"}
    return re.sub(rf"(^|::)({protocol}):/+", lambda one: f"{one[0].rstrip('/')}{slashes.get(one[2], '//')}", str(path))


def local_path(path: str | Path) -> Path:
    """A path on this machine, of `file:` addresses too."""
    return Path(re.sub(r"^file:/+", "/", str(path)))


class Storage(ABC):
    """Files by their paths, read at any place."""

    @abstractmethod
    def entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        """The names of all that lies in a folder itself, and whether each is a folder."""

    @abstractmethod
    def real_path(self, path: str) -> str:
        """One spelling of a path: absolute and without links on this machine."""

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

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalStorage, ()

    def entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        with os.scandir(folder) as entries:
            yield from ((entry.name, entry.is_dir()) for entry in entries)

    def real_path(self, path: str) -> str:
        return os.path.realpath(path)

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
        with driver_errors():
            infos = files.ls(inner, detail=True)
        for info in infos:
            yield info["name"].rstrip("/").rpartition("/")[2], info["type"] == "directory"

    def real_path(self, path: str) -> str:
        return path

    def exists(self, path: str) -> bool:
        files, inner = connect(path)
        try:
            with driver_errors():
                return files.info(inner)["type"] == "file"  # its own `isfile` is False where there is no permission too
        except FileNotFoundError:
            return False

    def stat(self, path: str) -> tuple[int, str]:
        files, inner = connect(path)
        with driver_errors():
            size, version = files.info(inner)["size"], str(files.ukey(inner))
        return known_size(path, size), version

    def stat_again(self, path: str) -> tuple[int, str]:
        if path not in self._stats:  # once in each process
            self._stats[path] = self.stat(path)
        return self._stats[path]

    def open(self, path: str) -> Any:
        files, inner = connect(path)
        with driver_errors():
            return io.BufferedReader(_Opened(files.open(inner, "rb")))

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        files, inner = connect(path)
        with driver_errors():
            content = files.cat_file(inner, start=start, end=stop)
        if stop is None or len(content) <= stop - start:
            return content
        if start:
            raise ValueError(
                f"{path}: its server sends the whole file for a part of it (no HTTP ranges), which random reads need: "
                f"copy the file here, or to a server that sends parts"
            )
        return content[:stop]


class _Opened(io.RawIOBase):
    """An open file of a driver, whose errors while it is read are OSErrors too."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with driver_errors():
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def driver_errors() -> Iterator[None]:
    """Around calls of a driver of fsspec: each has error classes of its own, which become OSErrors."""
    try:
        yield
    except FileNotFoundError as error:
        cause = error.__cause__  # that of http says so of every answer, and of none
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            raise cause from error
        if getattr(cause, "status", 404) not in (404, 410):
            raise _as_os_error(cause) from error
        raise
    except (OSError, ImportError):
        raise
    except Exception as error:
        raise _as_os_error(error) from error


def _as_os_error(error: BaseException | None) -> OSError:
    """A driver's error as the OSError that it means."""
    kind = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError, 410: FileNotFoundError}
    return kind.get(getattr(error, "status", 0), OSError)(f"{error}" or type(error).__name__)


def known_size(path: str, size: int | None) -> int:
    """The size of a file at an address; ValueError if its server does not say it."""
    if size is None:
        raise ValueError(f"{path}: its server does not say how many bytes it has: copy the file here, or elsewhere")
    return int(size)


def connect(path: str) -> tuple[Any, str]:
    """The file system of an address, of which fsspec keeps one for each process, and the path in it."""
    from fsspec.core import url_to_fs  # noqa: PLC0415  # most commands read files of this machine

    try:
        return url_to_fs(path)
    except ValueError as error:
        raise ValueError(f"{path} is not an address that fsspec knows ({error}): check how it begins") from error


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
