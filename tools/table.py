"""Put the results of several runs into one table: one row per label, one column per task and metric.

python tools/table.py --metric top1_k20 "random=runs/a,runs/b" "KDEP student=runs/c,runs/d"
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from stillroom.backbone import Results, format_table, read_results
from stillroom.backbone.atomic import write_file
from stillroom.backbone.command import report_errors
from stillroom.backbone.results import percent


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table from several results.json; the cells are percent."""

    rows: Annotated[Positional[tuple[str, ...]], arg(metavar="LABEL=RUN,RUN,...")]
    """A row's name and the run directories of its cells, in the same order of tasks in every row."""
    metric: str = "top1_k20"
    """The metric to show, as results.json calls it."""
    out: Path | None = None
    """Also write the numbers as JSON to this file."""


def column_name(results: Results) -> str:
    """A test set's name: its folder, without the part that only says it is for testing."""
    parts = [part for part in Path(results.datasets["test"].path).parts if part not in ("val", "test", "valid")]
    return f"{parts[-1]} ({results.task})"


def read_row(text: str) -> tuple[str, list[Results]]:
    """A row's label and its results.

    Raises:
        ValueError: not LABEL=RUN,...; or a run without results.
    """
    label, separator, runs = text.partition("=")
    if not separator:
        raise ValueError(f"{text!r} is not LABEL=RUN,RUN,...")
    return label, [read_results(run) for run in runs.split(",")]


@report_errors
def main() -> None:
    """Read, check that the rows agree in their tasks, print."""
    table = tyro.cli(Table, description=__doc__)
    rows = [read_row(text) for text in table.rows]
    header = [column_name(results) for results in rows[0][1]]
    for label, cells in rows:
        if [column_name(results) for results in cells] != header:
            raise ValueError(f"row {label!r} has other columns than the first row: {header} were expected")
        if missing := [r.protocol for r in cells if table.metric not in r.metrics]:
            raise ValueError(f"row {label!r} has no metric {table.metric!r} in {missing}")
    shown = [[label, *(percent(results.metrics, table.metric) for results in cells)] for label, cells in rows]
    print(format_table([f"{table.metric}, %", *header], shown))
    if table.out is not None:
        numbers = {
            label: {name: r.metrics[table.metric] for name, r in zip(header, cells, strict=True)}
            for label, cells in rows
        }
        write_file(table.out, json.dumps({"metric": table.metric, "rows": numbers}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
