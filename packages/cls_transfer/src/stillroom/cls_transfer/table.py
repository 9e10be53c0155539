"""table.json of a sweep over tasks, nets, learning rates and seeds, and what a command prints of it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stillroom.cls_transfer.config import ClassifyConfig
from stillroom.cls_transfer.record import DIVERGED, summary
from stillroom.finetune.table import TABLE, mean_and_std, sample_std
from stillroom.runs import format_table
from stillroom.runs.results import read_results
from stillroom.runs.run_files import from_json


@dataclass(frozen=True)
class Entry:
    """A net on a task, with the learning rate that is best on the held-out images.

    Attributes:
        lr: selected by the mean over the seeds.
        top1: on the test images, by seed; fractions.
        runs: names of the run directories, by seed.
        protocol: of the first seed.
    """

    lr: float
    top1: list[float]
    runs: list[str]
    protocol: str


def select_rate(runs: Sequence[ClassifyConfig]) -> Entry:
    """Select a learning rate among the runs of a net on a task; of equally good ones the first, none that diverged.

    Raises:
        ValueError: all of them diverged.
    """
    by_rate: dict[float, list[ClassifyConfig]] = {}
    for run in runs:
        by_rate.setdefault(run.lr, []).append(run)
    by_rate = {lr: of_rate for lr, of_rate in by_rate.items() if not any((r.out / DIVERGED).exists() for r in of_rate)}
    if not by_rate:
        raise ValueError(f"every rate of {runs[0].name} diverged with some seed: pass smaller --lrs")

    def held_out(rate: float) -> float:
        return statistics.mean(read_results(run.out).metrics["val_top1"] for run in by_rate[rate])

    lr = max(by_rate, key=held_out) if len(by_rate) > 1 else next(iter(by_rate))
    results = [read_results(run.out) for run in by_rate[lr]]
    top1 = [one.metrics["top1"] for one in results]
    return Entry(lr, top1, [run.out.name for run in by_rate[lr]], results[0].protocol)


def tabulate(config: ClassifyConfig, runs: Sequence[ClassifyConfig]) -> dict[str, object]:
    """The content of table.json: for each net and task the selected rate, top-1 by seed, difference to the first net.

    Args:
        config: of the sweep.
        runs: its single runs, finished or diverged.
    """
    rows: dict[str, dict[str, object]] = {}
    first: dict[str, Entry] = {}
    for checkpoint in config.checkpoint:
        rows[checkpoint] = {}
        for task in config.tasks or ("",):
            tasks = (task,) if task else ()
            entry = select_rate([run for run in runs if run.checkpoint == (checkpoint,) and run.tasks == tasks])
            base = first.setdefault(task, entry)
            rows[checkpoint][task or "folder"] = {
                "protocol": entry.protocol,
                "lr": entry.lr,
                "mean": statistics.mean(entry.top1),
                "std": sample_std(entry.top1),
                "top1": entry.top1,
                "over_first": [value - other for value, other in zip(entry.top1, base.top1, strict=True)],
                "runs": entry.runs,
            }
    return {"metric": "top1", "seeds": list(config.seeds), "rows": rows}


def report(path: Path) -> str:
    """Format what a command prints at its end: a sweep's table, or the top-1 of a single run."""
    if not (path / TABLE).exists():
        return summary(path)
    rows = from_json((path / TABLE).read_text(encoding="utf-8"))["rows"]
    tasks = list(next(iter(rows.values())))
    header = ["top-1, %", *(name for task in tasks for name in (task, "lr", "over the first"))]
    table = []
    for net, by_task in rows.items():
        cells = [net]
        for task in tasks:
            entry = by_task[task]
            cells += [mean_and_std(entry["top1"]), f"{entry['lr']:g}", mean_and_std(entry["over_first"])]
        table.append(cells)
    means = {net: statistics.mean(statistics.mean(entry["top1"]) for entry in rows[net].values()) for net in rows}
    best = max(means, key=lambda net: means[net])
    protocols = sorted({entry["protocol"] for by_task in rows.values() for entry in by_task.values()})
    last = f"{path}: {best} is best, {100 * means[best]:.1f} % top-1 in the mean"
    return "\n".join([*protocols, format_table(header, table), last])
