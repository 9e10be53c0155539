"""Arrays on disk that are costly to make: keyed by what they depend on, memory-mapped, filled in any order."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillroom.backbone.atomic import replace_directory
from stillroom.backbone.run import Run

RECORD = "record.json"
VALUES = "values.npy"
STATES = "states.npy"
_EMPTY, _WRITTEN, _BROKEN = 0, 1, 2


def cache_directory(kind: str) -> Path:
    """`$STILLROOM_CACHE/<kind>`, by default below ~/.cache/stillroom."""
    root = os.environ.get("STILLROOM_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "stillroom") / kind


def key_of(record: Mapping[str, Any]) -> str:
    """The name of what a record describes: a hash of its JSON."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Store:
    """One (rows, dim) array, memory-mapped, with the state of each row: empty, written, or broken.

    The folder's name is the hash of `record`, so whatever the record names (weights, images, view, ...) misses the
    store when it changes. A row is marked only after its values are there, so a killed process leaves no half row that
    counts; several processes may fill it, each its own rows.
    """

    def __init__(self, path: Path, values: np.ndarray, states: np.ndarray) -> None:
        self.path = path
        self._values = values
        self._states = states

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
        among: int = 1,
    ) -> "Store":
        """The store of `record` below `root`; made, empty, where there is none, or where its files were cut short.

        Args:
            root: folder of the stores; with several nodes a folder that all of them share.
            record: what the rows depend on.
            rows, dim, dtype: of the array.
            run: this process; the main one makes the files.
            among: stores of this size that will stand beside it, for which there must be room too.

        Raises:
            ValueError: no room on the disk, said with the size that is needed; or a folder that nodes do not share.
        """
        path = root / key_of({**record, "rows": rows, "dim": dim, "dtype": dtype})
        missing = not _is_whole(path, (rows, dim))
        run.wait()  # every process has looked before the main one makes it
        if missing and run.is_main:
            root.mkdir(parents=True, exist_ok=True)
            needed, free = among * store_bytes(rows, dim, dtype), shutil.disk_usage(root).free
            if needed > free:
                raise ValueError(
                    f"{root} has {free / 2**30:.1f} GiB free, {among} x {rows} rows of {dim} {dtype} need "
                    f"{needed / 2**30:.1f} GiB: set STILLROOM_CACHE to a larger disk, or do without the cache"
                )
            with replace_directory(path) as aside:
                np.lib.format.open_memmap(aside / VALUES, "w+", np.dtype(dtype), (rows, dim)).flush()
                np.lib.format.open_memmap(aside / STATES, "w+", np.uint8, (rows,)).flush()
                (aside / RECORD).write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
        run.wait()
        if not path.exists():
            raise ValueError(f"{root} is not shared with the main process: set STILLROOM_CACHE to a folder that is")
        values, states = (np.load(path / name, mmap_mode="r+") for name in (VALUES, STATES))
        return cls(path, values, states)

    def __len__(self) -> int:
        return len(self._states)

    @property
    def missing(self) -> Bool[Tensor, " n"]:
        """Which rows are still empty, now."""
        return torch.from_numpy(np.asarray(self._states == _EMPTY))

    @property
    def num_missing(self) -> int:
        """Rows that are still empty."""
        return int(self.missing.sum())

    def write(self, rows: Int[Tensor, " b"], values: Float[Tensor, "b d"]) -> None:
        """Fill rows.

        Raises:
            ValueError: values that are not finite in the store's type, for float16 beyond 65,504.
        """
        with np.errstate(over="ignore"):  # infinities are refused below
            block = values.detach().float().cpu().numpy().astype(self._values.dtype)
        if not np.isfinite(block).all():
            largest = float(values.abs().max())
            raise ValueError(f"features up to {largest:g} do not fit {self._values.dtype}: ask for float32")
        self._values[rows.numpy()] = block
        self._states[rows.numpy()] = _WRITTEN

    def mark_broken(self, rows: Int[Tensor, " b"]) -> None:
        """Rows that will never have values: their images cannot be read."""
        self._states[rows.numpy()] = _BROKEN

    @property
    def values(self) -> Float[Tensor, "n d"]:
        """All rows as they lie on the disk, mapped and not copied; empty ones are zero. Not to be written to."""
        return torch.from_numpy(self._values)

    def read(self, rows: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Rows that were written, as float32."""
        assert (self._states[rows.numpy()] == _WRITTEN).all(), "only rows that were written are read"
        return torch.from_numpy(np.asarray(self._values[rows.numpy()], dtype=np.float32))


def _is_whole(path: Path, shape: tuple[int, int]) -> bool:
    """Whether a store has its files at their full lengths: mapped to be written to, a short one would grow by zeros."""
    try:
        values, states = (np.load(path / name, mmap_mode="r") for name in (VALUES, STATES))
    except (OSError, ValueError, EOFError):
        return False
    return values.shape == shape and states.shape == shape[:1]


def store_bytes(rows: int, dim: int, dtype: str = "float16") -> int:
    """Bytes on disk of a store."""
    return math.prod((rows, dim, np.dtype(dtype).itemsize)) + rows
