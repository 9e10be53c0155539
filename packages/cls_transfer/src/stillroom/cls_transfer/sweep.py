"""One run, or all of them: every task, initialisation, learning rate and seed, into one table."""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stillroom.backbone import Run, format_table
from stillroom.backbone.atomic import write_file
from stillroom.backbone.configs import config_to_dict
from stillroom.backbone.flags import DeviceName
from stillroom.backbone.results import RESULTS, read_results
from stillroom.backbone.run import DivergedError
from stillroom.backbone.run_files import CONFIG, read_config
from stillroom.backbone.sweep import (
    once,
    refuse_other,
    refuse_other_weights,
    refuse_taken,
    resume_single,
    spread,
)
from stillroom.cls_transfer.config import UNIONS, ClassifyConfig, check, split
from stillroom.cls_transfer.data import read_sets
from stillroom.cls_transfer.record import summary
from stillroom.cls_transfer.train import prepare, resume_one, train_one

TABLE = "table.json"
DIVERGED = "diverged.txt"


def finetune(config: ClassifyConfig) -> Path:
    """Train and test a classifier, or all those of a sweep, and return the run directory.

    A sweep's directory gets one run directory for each and table.json; runs that are done are not done again, one that
    was stopped goes on.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    check(config)
    cells = split(config)
    refuse_taken(config.out, alone=cells == [config])
    run = Run.start(config.device)
    for cell in cells:
        refuse_stale(cell, run)
    look_ahead(cells, run)
    for cell in cells:
        if (cell.out / DIVERGED).exists():
            continue
        try:
            once(cell, UNIONS, partial(train_one, run=run), partial(resume_one, run=run))
        except DivergedError as error:
            if len(config.lrs) == 1:
                raise
            if run.is_main:  # one rate of several: the others may do
                write_file(cell.out / DIVERGED, f"{error}\n")
                print(f"{cell.out}: {error}", file=sys.stderr)
            run.wait()
    if cells != [config] and run.is_main:
        write_file(config.out / TABLE, json.dumps(tabulate(config, cells), indent=2) + "\n")
    run.wait()
    run.close()
    return config.out


def look_ahead(cells: Sequence[ClassifyConfig], run: Run) -> None:
    """Find what cannot work before the first of many runs: every net on every task is read once, with one seed.

    Raises:
        ValueError: see `prepare`.
    """
    for cell in {(cell.tasks, cell.checkpoint): cell for cell in cells if not (cell.out / CONFIG).exists()}.values():
        prepare(cell, run)


def refuse_stale(cell: ClassifyConfig, run: Run) -> None:
    """Refuse to keep a run whose first weights or images have changed since, or one that diverged with other settings.

    Raises:
        ValueError: with what changed.
    """
    if (cell.out / DIVERGED).exists():
        refuse_other(cell.out, config_to_dict(cell, UNIONS), json.loads(read_config(cell.out)))
    if not (cell.out / RESULTS).exists():
        return
    found, (name,) = read_results(cell.out), cell.checkpoint
    refuse_other_weights(cell.out, name, found.extra["initial_sha256"])
    if changed := read_sets(cell, run).changed_since({role: d.fingerprint for role, d in found.datasets.items()}):
        raise ValueError(f"the images in {changed} changed since {cell.out} was done: choose another --out")


def resume(
    path: Path, *, device: DeviceName | None = None, workers: int | None = None, log_every: int | None = None
) -> Path:
    """Go on with a single run; see `resume_one`. A sweep goes on when its command is given again.

    Raises:
        ValueError: a sweep's directory; see also `resume_one`.
    """
    return resume_single(path, partial(resume_one, device=device, workers=workers, log_every=log_every))


@dataclass(frozen=True)
class Entry:
    """One place of the table: a net on a task, with the learning rate that was best on the held-out part.

    Attributes:
        lr: chosen by the mean over the seeds.
        top1: on the test images, by seed; fractions.
        runs: names of the run directories, by seed.
        protocol: of the first seed.
    """

    lr: float
    top1: list[float]
    runs: list[str]
    protocol: str


def entry(cells: Sequence[ClassifyConfig]) -> Entry:
    """Choose a rate among the runs of a net on a task; of equally good ones the first, and none that diverged.

    Raises:
        ValueError: all of them diverged.
    """
    by_rate: dict[float, list[ClassifyConfig]] = {}
    for cell in cells:
        by_rate.setdefault(cell.lr, []).append(cell)
    by_rate = {lr: own for lr, own in by_rate.items() if not any((cell.out / DIVERGED).exists() for cell in own)}
    if not by_rate:
        raise ValueError(f"every rate of {cells[0].checkpoint[0]} diverged with some seed: give smaller --lrs")

    def held_out(rate: float) -> float:
        return statistics.mean(read_results(cell.out).metrics["val_top1"] for cell in by_rate[rate])

    lr = max(by_rate, key=held_out) if len(by_rate) > 1 else next(iter(by_rate))
    found = [read_results(cell.out) for cell in by_rate[lr]]
    top1 = [results.metrics["top1"] for results in found]
    return Entry(lr, top1, [cell.out.name for cell in by_rate[lr]], found[0].protocol)


def tabulate(config: ClassifyConfig, cells: Sequence[ClassifyConfig]) -> dict[str, object]:
    """The content of table.json: for each net and task the chosen rate, top-1 by seed, how far over the first net."""
    rows: dict[str, dict[str, object]] = {}
    first: dict[str, Entry] = {}
    for checkpoint in config.checkpoint:
        rows[checkpoint] = {}
        for task in config.tasks or ("",):
            found = entry([c for c in cells if c.checkpoint == (checkpoint,) and c.tasks == ((task,) if task else ())])
            base = first.setdefault(task, found)
            rows[checkpoint][task or "folder"] = {
                "protocol": found.protocol,
                "lr": found.lr,
                "mean": statistics.mean(found.top1),
                "std": statistics.stdev(found.top1) if len(found.top1) > 1 else None,
                "top1": found.top1,
                "over_first": [own - other for own, other in zip(found.top1, base.top1, strict=True)],
                "runs": found.runs,
            }
    return {"metric": "top1", "seeds": list(config.seeds), "rows": rows}


def report(path: Path) -> str:
    """What a command prints at its end: a sweep's table, or a run's one number."""
    if not (path / TABLE).exists():
        return summary(path)
    rows = json.loads((path / TABLE).read_text(encoding="utf-8"))["rows"]
    tasks = list(next(iter(rows.values())))
    header = ["top-1, %", *(name for task in tasks for name in (task, "lr", "over the first"))]
    table = [
        [net, *(cell for task in tasks for cell in (spread(by[task]["top1"]), f"{by[task]['lr']:g}",
                                                    spread(by[task]["over_first"])))]
        for net, by in rows.items()
    ]  # fmt: skip
    best = max(rows, key=lambda net: statistics.mean(statistics.mean(by["top1"]) for by in rows[net].values()))
    mean = statistics.mean(statistics.mean(by["top1"]) for by in rows[best].values())
    protocols = sorted({by[task]["protocol"] for by in rows.values() for task in tasks})
    return (
        "\n".join(protocols)
        + f"\n{format_table(header, table)}\n{path}: {best} is best, {100 * mean:.1f} % top-1 in the mean"
    )
