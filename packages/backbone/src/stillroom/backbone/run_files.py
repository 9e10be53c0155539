"""The files of a run directory, readers for its config and metrics, and what a run that fails leaves of it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillroom.backbone.errors import log_traceback, sentence_for

CONFIG = "config.json"
METRICS = "metrics.jsonl"
STATE = "state/last.pt"


def read_config(path: Path) -> str:
    """The text of a run's config.json; ValueError if `path` is not a run directory."""
    file = path / CONFIG
    if not file.exists():
        raise ValueError(f"{path} is not a run directory: it has no {CONFIG}")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text file: {error.reason}") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; an incomplete last line (the process was killed) is left out."""
    file = path / METRICS
    if not file.exists():
        return []
    try:
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline is incomplete
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): remove it, and the curves begin anew") from error


@contextmanager
def failing_cleanly(path: Path, *, new: bool) -> Iterator[None]:
    """Around a run: a bug leaves its traceback in the run directory; a new run that is refused at once leaves nothing.

    Args:
        path: the run directory.
        new: whether the block began the run. If it is refused before its first log line and its first state, the
            directory is removed, so that the command can be repeated.
    """
    try:
        yield
    except Exception as error:
        if sentence_for(error) is None:
            log_traceback(error, path)
        elif new and not ((path / STATE).exists() or read_metrics(path) or any(path.glob("error*.log"))):
            shutil.rmtree(path, ignore_errors=True)
        raise
