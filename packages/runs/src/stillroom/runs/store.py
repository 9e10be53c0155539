"""Caches of costly arrays on disk: keyed by their inputs, in files of many rows, filled in any order."""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillroom.backbone.atomic import replace_directory, write_file
from stillroom.backbone.cache_folder import warn_once
from stillroom.runs.run import Run

RECORD = "record.json"
LAYOUT = 2
"""Of a store's files. Those of layout 1 (up to 0.6.0), one mapped file for all processes, have other keys."""
MAX_CHUNK_ROWS = 65_536
MIN_CHUNKS = 64
FLUSH_SECONDS = 300.0
_EMPTY, _WRITTEN, _BROKEN = 0, 1, 2


class CacheError(ValueError):
    """A cache that cannot be written: its folder is read-only or full."""


@contextmanager
def optional_cache(run: Run, folder: Path) -> Iterator[None]:
    """Around a write into a cache: where it cannot be written, the main process says so once, and the run goes on."""
    try:
        yield
    except (OSError, CacheError) as error:
        if run.is_main:
            what = f"{folder} cannot be written ({error.strerror})" if isinstance(error, OSError) else str(error)
            warn_once(f"{what}; the run goes on without this cache")


def cache_key(record: Mapping[str, Any]) -> str:
    """The cache key of a record: a hash of its JSON."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Chunk:
    """The rows of one file of a store: their values, then a byte for the state of each.

    Args:
        content: the bytes of the file.
        rows, dim, dtype: of the values.
    """

    def __init__(self, content: np.ndarray, rows: int, dim: int, dtype: str) -> None:
        self.content = content
        self.values = content[:-rows].view(dtype).reshape(rows, dim)
        self.states = content[-rows:]


class Store:
    """One (rows, dim) array in files of up to 65,536 rows, with the state of each row: empty, written, or broken.

    The folder's name is the hash of `record`: a change of anything in it (weights, images, view, ...) is a new store.
    Several processes, also of several machines on a shared disk, may fill a store: each file has one of them as its
    owner (`EvaluationBatches(together=)`), who writes it aside and renames it. So a file is whole or not there, and no
    two processes of a run write one; a process that is killed loses what it computed since its last flush. Two runs
    that fill one store keep each other's rows.

    Use it as a context manager while it is filled: the rows of a block that ends, by an error too, are flushed.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: str, chunk_rows: int) -> None:
        self.path = path
        self._shape, self._dtype = shape, dtype
        self.chunk_rows = chunk_rows
        self._filling: dict[int, Chunk] = {}  # with rows that are not flushed
        self._mapped: dict[int, Chunk] = {}  # that are read
        self._flushed = time.monotonic()

    @classmethod
    def open(
        cls,
        root: Path,
        record: Mapping[str, Any],
        rows: int,
        dim: int,
        run: Run,
        dtype: Literal["float16", "float32"] = "float16",
        *,
        num_stores: int = 1,
        batch_size: int = 64,
    ) -> "Store":
        """Open the store of `record` below `root`; a new one is made if there is none.

        Args:
            root: folder of the stores; on several nodes, a shared folder.
            record: everything the rows depend on.
            rows, dim, dtype: of the array.
            run: this process; the main one makes the folder.
            num_stores: stores of this size that will be made, this one included; the disk must have room for all.
            batch_size: rows that are written at once; a file holds whole batches.

        Raises:
            CacheError: a folder that cannot be written, too little disk space, with the size needed, or a folder that
                nodes do not share; in every process.
        """
        layout = {"layout": LAYOUT, "chunk_rows": count_chunk_rows(rows, batch_size)}
        path = root / cache_key({**record, "rows": rows, "dim": dim, "dtype": dtype, **layout})
        missing = not (path / RECORD).exists()
        run.wait()  # every process has checked before the main one makes it
        problem = _make(path, {**record, **layout}, (rows, dim), dtype, num_stores) if missing and run.is_main else None
        if problem := run.gather(problem)[0]:  # the same in every process
            raise CacheError(problem)
        if not all(run.gather((path / RECORD).exists())):
            raise CacheError(f"{root} is not shared with the main process: set STILLROOM_CACHE to a folder that is")
        store = cls(path, (rows, dim), dtype, layout["chunk_rows"])
        if not os.access(path, os.W_OK) and store.num_missing:
            raise CacheError(f"{path} is incomplete and cannot be written: set STILLROOM_CACHE to a folder that can")
        return store

    def __len__(self) -> int:
        return self._shape[0]

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    @property
    def missing(self) -> Bool[Tensor, " n"]:
        """Which rows are still empty."""
        states = [self._load(number).states == _EMPTY for number in range(self._num_chunks)]
        return torch.from_numpy(np.concatenate([np.zeros(0, bool), *states]))

    @property
    def num_missing(self) -> int:
        """Number of rows that are still empty."""
        return int(self.missing.sum())

    def write(self, rows: Int[Tensor, " b"], values: Float[Tensor, "b d"]) -> None:
        """Fill rows, in memory until their file is full, every 5 minutes, or at `flush`.

        Raises:
            ValueError: a value that is not finite in the store's type (float16 ends at 65,504).
            CacheError: the disk is full.
        """
        with np.errstate(over="ignore"):  # infinities are refused below
            block = values.detach().float().cpu().numpy().astype(self._dtype)
        if not np.isfinite(block).all():
            largest = float(values.abs().max())
            raise ValueError(f"features up to {largest:g} do not fit {self._dtype}: use float32")
        self._fill(rows, _WRITTEN, block)

    def mark_broken(self, rows: Int[Tensor, " b"]) -> None:
        """Mark rows that will never have values: their images cannot be read."""
        self._fill(rows, _BROKEN, None)

    def flush(self) -> None:
        """Write every file that has new rows: aside, then renamed.

        Raises:
            CacheError: the disk is full or read-only; the rows that were flushed before stay.
        """
        for number in list(self._filling):
            self._write_chunk(number)
        self._flushed = time.monotonic()

    @property
    def values(self) -> Float[Tensor, "n d"]:
        """All rows in the store's type; empty ones are zero. One file is mapped, several are copied into memory."""
        chunks = [self._load(number).values for number in range(self._num_chunks)]
        return torch.from_numpy(chunks[0] if len(chunks) == 1 else np.concatenate(chunks))

    def read(self, rows: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Read rows that were written, as float32."""
        found = np.empty((len(rows), self._shape[1]), np.float32)
        numbers = rows.numpy() // self.chunk_rows
        for number in np.unique(numbers).tolist():
            here = numbers == number
            places = rows.numpy()[here] % self.chunk_rows
            chunk = self._mapped.get(number)
            if chunk is None or (chunk.states[places] != _WRITTEN).any():  # its owner may have written them since
                chunk = self._mapped[number] = self._load(number)
            assert (chunk.states[places] == _WRITTEN).all(), "only rows that were written are read"
            found[here] = chunk.values[places]
        return torch.from_numpy(found)

    @property
    def _num_chunks(self) -> int:
        return -(-self._shape[0] // self.chunk_rows)

    def _size(self, number: int) -> tuple[int, int]:
        """Rows and width of a file; the last one may be shorter."""
        return min(self.chunk_rows, self._shape[0] - number * self.chunk_rows), self._shape[1]

    def _file(self, number: int) -> Path:
        return self.path / f"{number:06d}.rows"

    def _load(self, number: int) -> Chunk:
        """A file's rows: those being filled, or those on disk."""
        return self._filling[number] if number in self._filling else self._read(number)

    def _read(self, number: int) -> Chunk:
        """A file's rows on disk, mapped; empty ones where there is no whole file."""
        (rows, dim), file = self._size(number), self._file(number)
        size = store_bytes(rows, dim, self._dtype)
        if file.exists() and file.stat().st_size == size:
            return Chunk(np.memmap(file, np.uint8, "c"), rows, dim, self._dtype)  # changes stay in this process
        return Chunk(np.zeros(size, np.uint8), rows, dim, self._dtype)

    def _fill(self, rows: Int[Tensor, " b"], state: int, block: np.ndarray | None) -> None:
        numbers = rows.numpy() // self.chunk_rows
        for number in np.unique(numbers).tolist():
            if number not in self._filling:
                self._filling[number] = Chunk(np.array(self._load(number).content), *self._size(number), self._dtype)
            chunk, here = self._filling[number], numbers == number
            places = rows.numpy()[here] % self.chunk_rows
            if block is not None:
                chunk.values[places] = block[here]
            chunk.states[places] = state
            if (chunk.states != _EMPTY).all():
                self._write_chunk(number)
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def _write_chunk(self, number: int) -> None:
        file, chunk = self._file(number), self._filling[number]
        other = self._read(number)  # another run may have filled rows of the same store meanwhile
        theirs = (chunk.states == _EMPTY) & (other.states != _EMPTY)
        chunk.values[theirs], chunk.states[theirs] = other.values[theirs], other.states[theirs]
        try:
            write_file(file, chunk.content.data)
        except OSError as error:
            raise CacheError(
                f"{file} cannot be written ({error.strerror}): set STILLROOM_CACHE to a folder that can, and start "
                f"again; what was stored before is kept"
            ) from error
        del self._filling[number]


def count_chunk_rows(rows: int, batch_size: int) -> int:
    """Rows of a file: whole batches, about 65,536 rows, or so few that 64 processes can share the store."""
    most = min(MAX_CHUNK_ROWS, -(-rows // MIN_CHUNKS))
    return max(1, min(-(-most // batch_size), MAX_CHUNK_ROWS // batch_size)) * batch_size


def _make(path: Path, record: Mapping[str, Any], shape: tuple[int, int], dtype: str, num_stores: int) -> str | None:
    """Make the folder of an empty store with its record, or return why not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        needed, free = num_stores * store_bytes(*shape, dtype), shutil.disk_usage(path.parent).free
        if needed > free:
            return (
                f"{path.parent} has {free / 2**30:.1f} GiB free, {num_stores} x {shape[0]} rows of {shape[1]} {dtype} "
                f"need {needed / 2**30:.1f} GiB: set STILLROOM_CACHE to a folder on a larger disk, or disable the cache"
            )
        with replace_directory(path) as partial:
            (partial / RECORD).write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        return f"{path.parent} cannot be written ({error.strerror}): set STILLROOM_CACHE to a folder that can"
    return None


def store_bytes(rows: int, dim: int, dtype: str = "float16") -> int:
    """Size of a store on disk, bytes."""
    return math.prod((rows, dim, np.dtype(dtype).itemsize)) + rows
