"""table.json of a sweep over first weights and seeds, and what a command prints of it."""

import json
import statistics
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from stillroom.backbone.atomic import write_file
from stillroom.backbone.results import format_table, read_results
from stillroom.backbone.sweep import FromFirstWeights, spread

TABLE = "table.json"


def write_table(config: FromFirstWeights, runs: Sequence[FromFirstWeights], metric: str, per_class: str) -> None:
    """Write table.json: for each net the metric by seed, how far over the first net, the metric of each class.

    Args:
        config: of the sweep.
        runs: its single runs, all done.
        metric: that is compared.
        per_class: where a run's `extra` keeps the metric by class.
    """
    rows: dict[str, dict[str, object]] = {}
    base: list[float] = []
    for checkpoint in config.checkpoint:
        own = [run for run in runs if run.checkpoint == (checkpoint,)]
        found = [read_results(run.out) for run in own]
        values = [results.metrics[metric] for results in found]
        base = base or values
        by_class = [results.extra[per_class] for results in found]
        rows[checkpoint] = {
            "protocol": found[0].protocol,
            "mean": statistics.mean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
            metric: values,
            "over_first": [value - first for value, first in zip(values, base, strict=True)],
            "metrics": {name: [results.metrics[name] for results in found] for name in found[0].metrics},
            per_class: {name: [by.get(name) for by in by_class] for name in dict.fromkeys(chain(*by_class))},
            "runs": [run.out.name for run in own],
        }
    table = {"metric": metric, "seeds": list(config.seeds), "rows": rows}
    write_file(config.out / TABLE, json.dumps(table, indent=2) + "\n")


def report(path: Path, summary: Callable[[Path], str]) -> str:
    """What a command prints at its end: a sweep's table, or what `summary` says of a single run."""
    if not (path / TABLE).exists():
        return summary(path)
    table = json.loads((path / TABLE).read_text(encoding="utf-8"))
    metric, rows = table["metric"], table["rows"]
    shown = [[net, spread(by[metric]), spread(by["over_first"])] for net, by in rows.items()]
    best = max(rows, key=lambda net: rows[net]["mean"])
    lines = sorted({by["protocol"] for by in rows.values()})
    lines.append(format_table(["net", f"{metric}, %", "over the first"], shown))
    lines.append(f"{path}: {best} is best, {100 * rows[best]['mean']:.1f} % {metric} in the mean")
    return "\n".join(lines)
