"""table.json of a sweep over initial weights and seeds, and what a command prints of it."""

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from stillroom.finetune.config import FineTuneConfig
from stillroom.runs.results import format_table, read_results
from stillroom.runs.run_files import from_json

TABLE = "table.json"


def tabulate(config: FineTuneConfig, runs: Sequence[FineTuneConfig], *, metric: str, per_class: str) -> dict[str, Any]:
    """The content of table.json: for each net the metric by seed, its difference to the first net, and by class.

    Args:
        config: of the sweep.
        runs: its finished single runs.
        metric: name of the metric that is compared.
        per_class: key in a run's `extra` that holds the metric of each class.
    """
    rows: dict[str, dict[str, object]] = {}
    first: list[float] = []
    for checkpoint in config.checkpoint:
        of_net = [run for run in runs if run.checkpoint == (checkpoint,)]
        results = [read_results(run.out) for run in of_net]
        values = [one.metrics[metric] for one in results]
        first = first or values
        by_class = [one.extra[per_class] for one in results]
        rows[checkpoint] = {
            "protocol": results[0].protocol,
            "mean": statistics.mean(values),
            "std": sample_std(values),
            metric: values,
            "over_first": [value - base for value, base in zip(values, first, strict=True)],
            "metrics": {name: [one.metrics[name] for one in results] for name in results[0].metrics},
            per_class: {name: [by.get(name) for by in by_class] for name in dict.fromkeys(chain(*by_class))},
            "runs": [run.out.name for run in of_net],
        }
    return {"metric": metric, "seeds": list(config.seeds), "rows": rows}


def report(path: Path, summary: Callable[[Path], str]) -> str:
    """Format what a command prints at its end: a sweep's table, or the `summary` of a single run."""
    if not (path / TABLE).exists():
        return summary(path)
    table = from_json((path / TABLE).read_text(encoding="utf-8"))
    metric, rows = table["metric"], table["rows"]
    cells = [[net, mean_and_std(by[metric]), mean_and_std(by["over_first"])] for net, by in rows.items()]
    best = max(rows, key=lambda net: rows[net]["mean"])
    lines = sorted({by["protocol"] for by in rows.values()})
    lines.append(format_table(["net", f"{metric}, %", "over the first"], cells))
    lines.append(f"{path}: {best} is best, {100 * rows[best]['mean']:.1f} % {metric} in the mean")
    return "\n".join(lines)


def mean_and_std(values: Sequence[float]) -> str:
    """Format fractions in percent: their mean and, of several, their sample standard deviation."""
    std = sample_std(values)
    mean = round(100 * statistics.mean(values), 1) + 0.0  # no minus before a zero
    return f"{mean:.1f}" if std is None else f"{mean:.1f} +- {100 * std:.1f}"


def sample_std(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None of one value, NaN if one of them is, where `statistics` raises."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
