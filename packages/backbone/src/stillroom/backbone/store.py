"""Caches of costly arrays on disk: keyed by their inputs, memory-mapped, filled in any order."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillroom.backbone.atomic import replace_directory
from stillroom.backbone.cache_folder import cache_directory as cache_directory
from stillroom.backbone.cache_folder import warn_once as warn_once
from stillroom.backbone.run import Run

RECORD = "record.json"
VALUES = "values.npy"
STATES = "states.npy"
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


@dataclass(frozen=True, eq=False)
class Store:
    """One (rows, dim) array, memory-mapped, with the state of each row: empty, written, or broken.

    The folder's name is the hash of `record`: a change of anything in it (weights, images, view, ...) is a new store. A
    row is marked after its values are written, so a killed process leaves no half-written row that counts. Several
    processes may fill a store, each its own rows.
    """

    path: Path
    _values: np.ndarray
    _states: np.ndarray

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
    ) -> "Store":
        """Open the store of `record` below `root`; a new one is made if there is none, or if its files are truncated.

        Args:
            root: folder of the stores; on several nodes, a shared folder.
            record: everything the rows depend on.
            rows, dim, dtype: of the array.
            run: this process; the main one makes the files.
            num_stores: stores of this size that will be made, this one included; the disk must have room for all.

        Raises:
            CacheError: a folder that cannot be written, too little disk space, with the size needed, or a folder that
                nodes do not share; in every process.
        """
        path = root / cache_key({**record, "rows": rows, "dim": dim, "dtype": dtype})
        missing = not _is_whole(path, (rows, dim))
        run.wait()  # every process has checked before the main one makes it
        problem = _make(path, record, (rows, dim), dtype, num_stores) if missing and run.is_main else None
        if problem := run.gather(problem)[0]:  # the same in every process
            raise CacheError(problem)
        if not all(run.gather(path.exists())):
            raise CacheError(f"{root} is not shared with the main process: set STILLROOM_CACHE to a folder that is")
        writable = os.access(path / VALUES, os.W_OK) and os.access(path / STATES, os.W_OK)
        values, states = (np.load(path / name, mmap_mode="r+" if writable else "c") for name in (VALUES, STATES))
        if not writable and bool((states == _EMPTY).any()):
            raise CacheError(f"{path} is incomplete and cannot be written: set STILLROOM_CACHE to a folder that can")
        return cls(path, values, states)

    def __len__(self) -> int:
        return len(self._states)

    @property
    def missing(self) -> Bool[Tensor, " n"]:
        """Which rows are still empty."""
        return torch.from_numpy(np.asarray(self._states == _EMPTY))

    @property
    def num_missing(self) -> int:
        """Number of rows that are still empty."""
        return int(self.missing.sum())

    def write(self, rows: Int[Tensor, " b"], values: Float[Tensor, "b d"]) -> None:
        """Fill rows; ValueError if a value is not finite in the store's type (float16 ends at 65,504)."""
        with np.errstate(over="ignore"):  # infinities are refused below
            block = values.detach().float().cpu().numpy().astype(self._values.dtype)
        if not np.isfinite(block).all():
            largest = float(values.abs().max())
            raise ValueError(f"features up to {largest:g} do not fit {self._values.dtype}: use float32")
        self._values[rows.numpy()] = block
        self._states[rows.numpy()] = _WRITTEN

    def mark_broken(self, rows: Int[Tensor, " b"]) -> None:
        """Mark rows that will never have values: their images cannot be read."""
        self._states[rows.numpy()] = _BROKEN

    @property
    def values(self) -> Float[Tensor, "n d"]:
        """All rows, memory-mapped and not copied; empty ones are zero. Read-only."""
        return torch.from_numpy(self._values)

    def read(self, rows: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Read rows that were written, as float32."""
        assert (self._states[rows.numpy()] == _WRITTEN).all(), "only rows that were written are read"
        return torch.from_numpy(np.asarray(self._values[rows.numpy()], dtype=np.float32))


def _make(path: Path, record: Mapping[str, Any], shape: tuple[int, int], dtype: str, num_stores: int) -> str | None:
    """Make the files of an empty store and reserve their space, or return why not.

    Without its space a mapped file would kill the process when the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        needed, free = num_stores * store_bytes(*shape, dtype), shutil.disk_usage(path.parent).free
        if needed > free:
            return (
                f"{path.parent} has {free / 2**30:.1f} GiB free, {num_stores} x {shape[0]} rows of {shape[1]} {dtype} "
                f"need {needed / 2**30:.1f} GiB: set STILLROOM_CACHE to a folder on a larger disk, or disable the cache"
            )
        with replace_directory(path) as partial:
            for name, kind, size in ((VALUES, dtype, shape), (STATES, "uint8", shape[:1])):
                np.lib.format.open_memmap(partial / name, "w+", np.dtype(kind), size).flush()
                if hasattr(os, "posix_fallocate"):  # not on a Mac
                    with (partial / name).open("r+b") as opened:
                        os.posix_fallocate(opened.fileno(), 0, (partial / name).stat().st_size)
            (partial / RECORD).write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        return f"{path.parent} cannot be written ({error.strerror}): set STILLROOM_CACHE to a folder that can"
    return None


def _is_whole(path: Path, shape: tuple[int, int]) -> bool:
    """Whether a store's files have their full lengths: a short one, mapped for writing, would be extended by zeros."""
    try:
        values, states = (np.load(path / name, mmap_mode="r") for name in (VALUES, STATES))
    except (OSError, ValueError, EOFError):
        return False
    return values.shape == shape and states.shape == shape[:1]


def store_bytes(rows: int, dim: int, dtype: str = "float16") -> int:
    """Size of a store on disk, bytes."""
    return math.prod((rows, dim, np.dtype(dtype).itemsize)) + rows
