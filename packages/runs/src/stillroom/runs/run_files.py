"""The files of a run directory, their readers, JSON without NaN, and what a run that fails leaves."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillroom.backbone.errors import log_traceback, sentence_for

CONFIG = "config.json"
INPUTS = "inputs.json"
METRICS = "metrics.jsonl"
STATE = "state/last.pt"
PREVIOUS = "state/previous.pt"
"""The state before the last one: what a run goes on from if the last is damaged."""
NOT_FINITE = "not_finite"
"""Key of a JSON object that says why a value in it is null: the value's path -> the reason."""


def read_config(path: Path) -> str:
    """The text of a run's config.json; ValueError if `path` is not a run directory."""
    file = path / CONFIG
    if not file.exists():
        raise ValueError(f"{path} is not a run directory: it has no {CONFIG}")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file: {error.reason}") from error


def read_inputs(path: Path) -> dict[str, Any]:
    """The content of a run's inputs.json, see `stillroom.runs.inputs`; empty for a run of an older version."""
    file = path / INPUTS
    if not file.exists():
        return {}
    advice = "copy it again, or remove it: whether the inputs have changed is unknown then"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{file} is damaged ({error}): {advice}") from error
    kinds = {"working_directory": str, "sha256": dict, "moved": dict}
    if not (isinstance(content, dict) and all(isinstance(content.get(key), kind) for key, kind in kinds.items())):
        raise ValueError(f"{file} is damaged, expected {', '.join(kinds)}: {advice}")
    return content


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; an incomplete last line (the process was killed) is left out."""
    file = path / METRICS
    if not file.exists():
        return []
    try:
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline is incomplete
        rows = [from_json(line) for line in lines]
        if not all(isinstance(row["step"], int) and isinstance(row.get(NOT_FINITE, {}), dict) for row in rows):
            raise TypeError("a step is not a whole number")
        return rows
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}): remove it, and the curves begin anew") from error


def to_json(content: Mapping[str, Any], indent: int | None = None) -> str:
    """Write JSON, which has no NaN and no infinity: they become null, and `not_finite` says why.

    Args:
        content: JSON values; its own `not_finite` may hold better reasons than `NaN` or `Infinity`.
        indent: see `json.dumps`.
    """
    reasons: dict[str, str] = {}

    def to_null(path: str, value: Any) -> Any:
        if not isinstance(value, float) or math.isfinite(value):
            return value
        reasons[path] = json.dumps(value)
        return None

    finite = _change_leaves(content, to_null)
    if reasons:
        finite[NOT_FINITE] = reasons | content.get(NOT_FINITE, {})
    return json.dumps(finite, indent=indent, allow_nan=False)


def from_json(text: str) -> Any:
    """Read JSON back; a null that `to_json` wrote for a number is NaN."""
    content = json.loads(text)
    reasons = content.get(NOT_FINITE, {}) if isinstance(content, dict) else {}
    return _change_leaves(content, lambda path, value: math.nan if value is None and path in reasons else value)


def _change_leaves(value: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _change_leaves(item, change, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_change_leaves(item, change, f"{path}.{index}".lstrip(".")) for index, item in enumerate(value)]
    return change(path, value)


@contextmanager
def failing_cleanly(path: Path, *, new: bool, begun: Sequence[str] = ()) -> Iterator[None]:
    """Around a run: a bug leaves its traceback in the run directory; a new run that is refused at once leaves nothing.

    Args:
        path: the run directory.
        new: whether the block began the run. If it is refused before its first log line and its first state, the
            directory is removed, so that the command can be repeated.
        begun: patterns of a framework's own logs and states in the run directory.
    """
    try:
        yield
    except Exception as error:
        if sentence_for(error) is None:
            log_traceback(error, path)
        elif new:
            logs = (file for name in (STATE, METRICS, "error*.log", *begun) for file in path.glob(name))
            if not any(file.stat().st_size for file in logs):
                shutil.rmtree(path, ignore_errors=True)
        raise
