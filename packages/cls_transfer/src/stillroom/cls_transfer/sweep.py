"""One run, or all of them: every task, initialisation, learning rate and seed, into one table."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

from stillroom.backbone import Run, format_table
from stillroom.backbone.files import write_file
from stillroom.backbone.results import RESULTS, read_results
from stillroom.backbone.run import CONFIG, DeviceName
from stillroom.backbone.sweep import once, slug, spread
from stillroom.cls_transfer.config import UNIONS, ClassifyConfig
from stillroom.cls_transfer.first import BARE
from stillroom.cls_transfer.record import summary
from stillroom.cls_transfer.train import check, resume_one, train_one

TABLE = "table.json"


def finetune(config: ClassifyConfig) -> Path:
    """Train and test a classifier, or all those of a sweep, and return the run directory.

    A sweep's directory gets one run directory for each and table.json; runs that are done are not done again, one that
    was stopped goes on.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    check(config)
    cells = split(config)
    if cells == [config] and config.out.exists():
        raise ValueError(f"{config.out} exists: choose another --out, or go on with it by `resume {config.out}`")
    run = Run.start(config.device)
    for cell in cells:
        once(cell, UNIONS, partial(train_one, run=run), partial(resume_one, run=run))
    if cells != [config] and run.is_main:
        write_file(config.out / TABLE, json.dumps(tabulate(config, cells), indent=2) + "\n")
    run.wait()
    run.close()
    return config.out


def resume(
    path: Path, *, device: DeviceName | None = None, workers: int | None = None, log_every: int | None = None
) -> Path:
    """Go on with a single run; see `resume_one`. A sweep goes on when its command is given again.

    Raises:
        ValueError: a sweep's directory; see also `resume_one`.
    """
    if not (path / CONFIG).exists() and list(path.glob(f"*/{CONFIG}")):
        raise ValueError(f"{path} is a sweep: give its command again, and it goes on where it was")
    if not (path / RESULTS).exists():
        resume_one(path, device=device, workers=workers, log_every=log_every)
    return path


def split(config: ClassifyConfig) -> list[ClassifyConfig]:
    """The single runs: the config itself, or one for each combination, in directories of their own.

    Raises:
        ValueError: nothing to combine; several rates and nothing to choose by.
    """
    for name in ("checkpoint", "lrs", "seeds"):
        if not getattr(config, name):
            raise ValueError(f"--{name} is empty: give at least one")
    if len(config.lrs) > 1 and not config.held_out and config.val is None and config.choose != "best-on-test":
        raise ValueError("several --lrs need something to choose by: --held-out above 0, or --val")
    axes = (config.tasks or (None,), list(enumerate(config.checkpoint)), config.lrs, config.seeds)
    if all(len(axis) == 1 for axis in axes):
        return [config]
    like = config.like or next((name for name in config.checkpoint if name not in BARE), None)
    cells = []
    for task, (place, checkpoint), lr, seed in product(*axes):
        parts = [task or "", f"{place}-{slug(checkpoint)}", f"lr{lr:g}" if len(config.lrs) > 1 else "", f"seed{seed}"]
        cell = replace(
            config, tasks=(task,) if task else (), checkpoint=(checkpoint,), lrs=(lr,), seeds=(seed,),
            out=config.out / "-".join(filter(None, parts)), like=like if checkpoint in BARE else None,
        )  # fmt: skip
        cells.append(cell)
    return cells


@dataclass(frozen=True)
class Entry:
    """One place of the table: a net on a task, with the learning rate that was best on the held-out part.

    Attributes:
        lr: chosen by the mean over the seeds.
        top1: on the test images, by seed; fractions.
        runs: names of the run directories, by seed.
    """

    lr: float
    top1: list[float]
    runs: list[str]


def entry(cells: Sequence[ClassifyConfig]) -> Entry:
    """Choose a rate among the runs of a net on a task; of equally good ones the first."""
    by_rate: dict[float, list[ClassifyConfig]] = {}
    for cell in cells:
        by_rate.setdefault(cell.lr, []).append(cell)

    def held_out(rate: float) -> float:
        return statistics.mean(read_results(cell.out).metrics["val_top1"] for cell in by_rate[rate])

    lr = max(by_rate, key=held_out) if len(by_rate) > 1 else next(iter(by_rate))
    return Entry(lr, [read_results(c.out).metrics["top1"] for c in by_rate[lr]], [c.out.name for c in by_rate[lr]])


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
                "lr": found.lr,
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
    return f"{format_table(header, table)}\n{path}: {best} is best, {100 * mean:.1f} % top-1 in the mean"
