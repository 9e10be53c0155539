"""`results.json`: the output of every evaluation and transfer, its reader, and the tables of all reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cattrs

from stillroom.backbone.atomic import write_file
from stillroom.backbone.manifest import MadeBy
from stillroom.runs.run_files import from_json, read_inputs, to_json

SCHEMA = 1
RESULTS = "results.json"


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """The weights that were measured: their path, their hash (`weights_sha256`), how they were made."""

    path: str
    sha256: str
    method: str


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """The images of a measurement: their folder, number and fingerprint, and how many could not be read.

    Args:
        left_out: files of the folder that are not among the images, by reason; see `walk` in stillroom-images.
        in_train: images that are training images too, byte for byte; None: not compared.
        content: hash of a sample of the contents, see `Source.content`; results of older versions have none.
    """

    path: str
    count: int
    fingerprint: str
    broken: int = 0
    content: str = ""
    left_out: dict[str, int] = field(default_factory=dict)
    in_train: int | None = None


@dataclass(frozen=True, kw_only=True)
class Results:
    """One measurement. Metrics are fractions from 0 to 1, losses in their own unit; tables print percent.

    Args:
        task: `knn`, `classification`, `distill`, ...
        protocol: versioned id of the way of measuring, such as `knn/v1 k=20 feature=before size=48`.
        datasets: by role: `train`, `test`.
        metrics: name -> number.
        seconds: wall time of the run.
        not_finite: path of a number that has no value, such as `metrics.mIoU` -> why; see `to_json`.
    """

    task: str
    protocol: str
    datasets: dict[str, DatasetRecord]
    checkpoint: CheckpointRecord
    metrics: dict[str, float]
    seed: int
    seconds: float
    made_by: MadeBy
    schema: int = SCHEMA
    extra: dict[str, Any] = field(default_factory=dict)
    not_finite: dict[str, str] = field(default_factory=dict)


def write_results(directory: Path, results: Results) -> None:
    """Write `results.json` into a run directory, atomically; `extra` gets the hashes and moves of inputs.json."""
    if began := read_inputs(directory):
        results = replace(results, extra={**results.extra, "inputs": began["sha256"], "moved": began["moved"]})
    write_file(directory / RESULTS, to_json(cattrs.unstructure(results), indent=2) + "\n")


def refuse_unfinished(run_directory: Path) -> None:
    """Raise ValueError if a run is not finished."""
    if not (run_directory / RESULTS).exists():
        raise ValueError(f"{run_directory} is not a finished run: it has no {RESULTS}")


def read_results(path: str | Path) -> Results:
    """Read a results.json, or that of a run directory; ValueError if it is missing, damaged or newer."""
    file = Path(path) / RESULTS if Path(path).is_dir() else Path(path)
    try:
        raw = from_json(file.read_text(encoding="utf-8"))
        newer = raw["schema"] > SCHEMA
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a results file: {error}") from error
    if newer:
        raise ValueError(f"{file} has schema {raw['schema']}, this version reads up to {SCHEMA}: upgrade it")
    try:
        return cattrs.structure(raw, Results)
    except (cattrs.BaseValidationError, KeyError) as error:
        raise ValueError(f"{file} does not fit schema {SCHEMA} of results: {error}") from error


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, readable in a terminal too."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(str(c).ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in lines)


def percent(metrics: Mapping[str, float], name: str) -> str:
    """A metric as tables print it: percent, one decimal."""
    return f"{100 * metrics[name]:.1f}"
