"""Put the results of several runs into one table: one row per label, one column per test set and task.

python tools/table.py --metric top1_k20 "random=runs/a,runs/b" "KDEP student=runs/c,runs/d"
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from stillroom.backbone.atomic import write_file
from stillroom.backbone.command import report_errors
from stillroom.runs import Results, format_table, read_results
from stillroom.runs.results import percent
from stillroom.runs.run_files import to_json


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table from several results.json; the cells are percent."""

    rows: Annotated[Positional[tuple[str, ...]], arg(metavar="LABEL=RUN,RUN,...")]
    """A row's label and the run directories of its cells; every row has the same tasks in the same order."""
    metric: str = "top1_k20"
    """The metric to show, by its name in results.json."""
    out: Path | None = None
    """Also write the numbers as JSON to this file."""


def column_name(results: Results) -> str:
    """A test set's name and task: its folder, or the one above a folder named val, valid or test."""
    parts = [part for part in Path(results.datasets["test"].path).parts if part not in ("val", "test", "valid")]
    return f"{parts[-1] if parts else '.'} ({results.task})"


def metric_title(metric: str) -> str:
    """A metric's name as a header: `top1_k20` is "k-NN top-1, k = 20"; an unknown name stays as it is."""
    title = re.sub(r"^top(?=\d)", "top-", metric)
    return re.sub(r"^(.+)_k(\d+)$", r"k-NN \1, k = \2", title)


def read_row(text: str) -> tuple[str, list[Results]]:
    """A row's label and its results.

    Raises:
        ValueError: text that is not LABEL=RUN,..., or a run without results, or without test images.
    """
    label, separator, runs = text.partition("=")
    if not separator:
        raise ValueError(f"{text!r} is not LABEL=RUN,RUN,...")
    cells = [read_results(run) for run in runs.split(",")]
    if untested := [run for run, one in zip(runs.split(","), cells, strict=True) if "test" not in one.datasets]:
        raise ValueError(f"{untested[0]} was not measured on test images: it has no column in this table")
    return label, cells


@report_errors
def main() -> None:
    """Read the rows, check that they have the same columns, print the table."""
    table = tyro.cli(Table, description=__doc__)
    if not table.rows:
        raise ValueError("there are no rows: pass LABEL=RUN,RUN,...")
    rows = [read_row(text) for text in table.rows]
    header = [column_name(results) for results in rows[0][1]]
    for label, cells in rows:
        if (columns := [column_name(results) for results in cells]) != header:
            raise ValueError(f"row {label!r} has the columns {columns}, expected those of the first row: {header}")
        if missing := [r.protocol for r in cells if table.metric not in r.metrics]:
            raise ValueError(f"row {label!r} has no metric {table.metric!r} in {missing}")
    lines = [[label, *(percent(results.metrics, table.metric) for results in cells)] for label, cells in rows]
    print(format_table([f"{metric_title(table.metric)}, %", *header], lines))
    if table.out is not None:
        numbers = {
            label: {name: r.metrics[table.metric] for name, r in zip(header, cells, strict=True)}
            for label, cells in rows
        }
        write_file(table.out, to_json({"metric": table.metric, "rows": numbers}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
