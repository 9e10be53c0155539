"""The files of a run directory, and readers for its config and metrics."""

import json
from pathlib import Path
from typing import Any

CONFIG = "config.json"
INPUTS = "inputs.json"
METRICS = "metrics.jsonl"
STATE = "state/last.pt"


def read_config(path: Path) -> str:
    """The text of a run's config.json; ValueError if `path` is not a run directory."""
    file = path / CONFIG
    if not file.exists():
        raise ValueError(f"{path} is not a run directory: it has no {CONFIG}")
    return file.read_text(encoding="utf-8")


def read_inputs(path: Path) -> dict[str, Any]:
    """The content of a run's inputs.json, see `stillroom.backbone.inputs`; empty for a run of an older version."""
    return json.loads((path / INPUTS).read_text(encoding="utf-8")) if (path / INPUTS).exists() else {}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; an incomplete last line (the process was killed) is left out."""
    file = path / METRICS
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline is incomplete
    return [json.loads(line) for line in lines]
