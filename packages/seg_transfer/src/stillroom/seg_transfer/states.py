"""What MMEngine saves during a run, read without running code from it."""

import pickle
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from stillroom.backbone.tensor_files import TensorFileError, load_tensors
from stillroom.seg_transfer.config import SegmentConfig

SCHEME = "stillroom-state:"
"""Before a state's path: MMEngine then loads it by `load_state`, not by its own reader."""
_LOGGED = np.zeros(1)


def get_statistic(owner: object, name: str) -> Any:
    """Stand in for `getattr`, by which MMEngine's log buffers refer to their own statistics and to nothing else.

    Raises:
        UnpicklingError: another attribute, or of another object.
    """
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError(f"GLOBAL getattr of {name!r}")
    return getattr(HistoryBuffer, name)


HARMLESS: tuple[Any, ...] = (
    (get_statistic, "builtins.getattr"),
    HistoryBuffer,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)},
    _LOGGED.__reduce__()[0],
    _LOGGED[0].__reduce__()[0],
)
"""The types in MMEngine's states beside those that torch allows: its log buffers, and NumPy's arrays and numbers."""


def refuse_user_config(run_directory: Path, config: SegmentConfig) -> None:
    """Refuse, by a ValueError, a run by a config of MMSegmentation, which is a program and may be anybody's."""
    if config.framework_config is not None:
        raise ValueError(
            f"{run_directory} was trained by the config {config.framework_config}, which is a program: pass "
            "--trust-run if the run is your own"
        )


def latest_weights(out: Path) -> Path | None:
    """Find MMEngine's last complete state in a run directory.

    MMEngine stores a path, which is wrong once the run was moved, and it stops at a truncated state.
    """
    states = sorted(
        (file for file in out.glob("*.pth") if re.fullmatch(r"(iter|epoch)_\d+", file.stem)),
        key=lambda file: int(file.stem.partition("_")[2]),
    )
    whole = next((file for file in reversed(states) if zipfile.is_zipfile(file)), None)
    if states and whole != states[-1]:
        words = "from the state before" if whole else "from the first step"
        print(f"warning: {states[-1]} is truncated; {out} goes on {words}", file=sys.stderr)
    return whole


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_state(filename: str, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a state of MMEngine: tensors and plain values only.

    Its text of the run's config is left out, because MMEngine runs it as Python.

    Args:
        filename: the file, after `SCHEME` or alone.
        map_location: see `torch.load`.

    Raises:
        ValueError: it holds other objects, which could run code, or it is damaged.
    """
    file, advice = Path(filename.removeprefix(SCHEME)), "remove it, and the state before it is used"
    try:
        state = load_tensors(file, advice=advice, map_location=map_location, allowed=HARMLESS)
    except TensorFileError as error:
        if error.named is None:
            raise
        raise ValueError(
            f"{file} holds objects that can run code ({error.named}): pass --trust-run if the run is your own"
        ) from error
    if not (isinstance(state, dict) and isinstance(meta := state.get("meta"), dict) and "state_dict" in state):
        raise ValueError(f"{file} is not a state of MMEngine: {advice}")
    return {**state, "meta": {key: value for key, value in meta.items() if key not in ("config", "cfg")}}
