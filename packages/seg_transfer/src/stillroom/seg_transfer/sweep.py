"""One run, or all of them: every initialisation and seed, into one table."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

from stillroom.backbone import Run, format_table, read_results
from stillroom.backbone.files import write_file
from stillroom.backbone.first import BARE, other_than_bare
from stillroom.backbone.results import RESULTS
from stillroom.backbone.run import DeviceName
from stillroom.backbone.sweep import (
    directory_name,
    once,
    refuse_other_weights,
    refuse_taken,
    refuse_twice,
    resume_single,
    spread,
)
from stillroom.seg_transfer.config import SegmentConfig
from stillroom.seg_transfer.data import read_data, read_framework, read_framework_config
from stillroom.seg_transfer.record import protocol, summary
from stillroom.seg_transfer.train import resume_one, train_one

TABLE = "table.json"


def finetune(config: SegmentConfig) -> Path:
    """Train and measure a segmentation model, or all those of a sweep, and return the run directory.

    A sweep's directory gets one run directory for each and table.json; runs that are done are not done again, one that
    was stopped goes on.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    cells = split(config)
    alone = cells == [config]
    refuse_taken(config.out, alone=alone)
    run = Run.start(config.device)
    for cell in cells:
        refuse_stale(cell)
        once(cell, (), partial(train_one, run=run), partial(resume_one, run=run))
    if not alone and run.is_main:
        write_file(config.out / TABLE, json.dumps(tabulate(config, cells), indent=2) + "\n")
    run.wait()
    run.close()
    return config.out


def refuse_stale(cell: SegmentConfig) -> None:
    """Refuse to keep a run whose first weights or images have changed since.

    Raises:
        ValueError: with what changed.
    """
    if not (cell.out / RESULTS).exists():
        return
    found = read_results(cell.out)
    refuse_other_weights(cell.out, cell.name, found.extra["initial_sha256"])
    if cell.framework_config is not None:
        own = read_framework_config(cell.framework_config)
        data = read_framework(own)
        if protocol(cell, data) != found.protocol:
            raise ValueError(f"{cell.framework_config} changed since {cell.out} was done: choose another --out")
    else:
        data = read_data(cell)
    if {"train": data.train.record, "test": data.val.record} != found.datasets:
        raise ValueError(f"the images in {data.train.root} changed since {cell.out} was done: choose another --out")


def resume(
    path: Path, *, device: DeviceName | None = None, workers: int | None = None, log_every: int | None = None
) -> Path:
    """Go on with a single run; see `resume_one`. A sweep goes on when its command is given again.

    Raises:
        ValueError: a sweep's directory; see also `resume_one`.
    """
    return resume_single(path, partial(resume_one, device=device, workers=workers, log_every=log_every))


def split(config: SegmentConfig) -> list[SegmentConfig]:
    """The single runs: the config itself, or one for each combination, in directories of their own.

    Raises:
        ValueError: nothing to combine, or the same twice.
    """
    for name in ("checkpoint", "seeds"):
        if not getattr(config, name):
            raise ValueError(f"--{name} is empty: give at least one")
        refuse_twice(getattr(config, name), f"--{name}")
    if len(config.checkpoint) == len(config.seeds) == 1:
        return [config]
    like = config.like or other_than_bare(config.checkpoint)
    return [
        replace(
            config, checkpoint=(checkpoint,), seeds=(seed,), like=like if checkpoint in BARE else None,
            out=config.out / f"{directory_name(checkpoint)}-seed{seed}",
        )
        for checkpoint, seed in product(config.checkpoint, config.seeds)
    ]  # fmt: skip


def tabulate(config: SegmentConfig, cells: Sequence[SegmentConfig]) -> dict[str, object]:
    """The content of table.json: for each net mIoU by seed, how far over the first net, IoU of each class."""
    rows: dict[str, dict[str, object]] = {}
    base: list[float] = []
    for checkpoint in config.checkpoint:
        found = [read_results(cell.out) for cell in cells if cell.checkpoint == (checkpoint,)]
        own = [results.metrics["mIoU"] for results in found]
        base = base or own
        per_class = [results.extra["iou_per_class"] for results in found]
        rows[checkpoint] = {
            "protocol": found[0].protocol,
            "mean": statistics.mean(own),
            "std": statistics.stdev(own) if len(own) > 1 else None,
            "mIoU": own,
            "over_first": [a - b for a, b in zip(own, base, strict=True)],
            "metrics": {name: [results.metrics[name] for results in found] for name in found[0].metrics},
            "iou_per_class": {name: [by.get(name) for by in per_class] for name in per_class[0]},
            "runs": [cell.out.name for cell in cells if cell.checkpoint == (checkpoint,)],
        }
    return {"metric": "mIoU", "seeds": list(config.seeds), "rows": rows}


def report(path: Path) -> str:
    """What a command prints at its end: a sweep's table, or a run's own."""
    if not (path / TABLE).exists():
        return summary(path)
    rows = json.loads((path / TABLE).read_text(encoding="utf-8"))["rows"]
    table = [[net, spread(by["mIoU"]), spread(by["over_first"])] for net, by in rows.items()]
    best = max(rows, key=lambda net: rows[net]["mean"])
    protocols = "\n".join(sorted({by["protocol"] for by in rows.values()}))
    shown = format_table(["net", "mIoU, %", "over the first"], table)
    return f"{protocols}\n{shown}\n{path}: {best} is best, {100 * rows[best]['mean']:.1f} % mIoU in the mean"
