"""Start and resume classification runs: what this package fills into the life cycle of fine-tuning."""

import sys
from dataclasses import replace
from pathlib import Path

from stillroom.backbone.atomic import write_file
from stillroom.backbone.flags import DeviceName, Workers
from stillroom.cls_transfer.config import AXES, UNIONS, ClassifyConfig, check
from stillroom.cls_transfer.data import read_sets
from stillroom.cls_transfer.record import DIVERGED, PACKAGE
from stillroom.cls_transfer.table import report, tabulate
from stillroom.cls_transfer.train import Prepared, prepare, train
from stillroom.finetune import lifecycle
from stillroom.finetune.lifecycle import Task
from stillroom.runs import Run
from stillroom.runs.configs import to_places
from stillroom.runs.run import DivergedError

__all__ = ["TASK", "finetune", "report", "resume"]

TASK: Task[ClassifyConfig, Prepared] = Task(
    package=PACKAGE,
    config=ClassifyConfig,
    check=lambda config, world_size, on_cpu: check(config),
    read_records=lambda config, run: read_sets(config, run).records,
    prepare=prepare,
    train=train,
    tabulate=tabulate,
    axes=AXES,
    prepared_axes=("tasks", "checkpoint"),
    unions=UNIONS,
)


def finetune(config: ClassifyConfig) -> Path:
    """Train and test a classifier, or every one of a sweep, and return the run directory; see `lifecycle.finetune`.

    Of several learning rates, those that diverge are left out.
    """
    several = replace(TASK, train=train_unless_diverged)
    return lifecycle.finetune(several if len(config.lrs) > 1 else TASK, config)


def train_unless_diverged(config: ClassifyConfig, run: Run, prepared: Prepared, resume: bool) -> None:
    """Train with one of several learning rates; if it diverges, leave the reason in the run directory, once."""
    if (config.out / DIVERGED).exists():
        return
    try:
        train(config, run, prepared, resume)
    except DivergedError as error:
        if run.is_main:
            write_file(config.out / DIVERGED, f"{error}\n")
            print(f"{config.out}: {error}", file=sys.stderr)
        run.wait()


def resume(
    path: Path,
    *,
    device: DeviceName | None = None,
    workers: Workers | None = None,
    log_every: int | None = None,
    checkpoint: str | None = None,
    train: Path | None = None,
    test: Path | None = None,
    val: Path | None = None,
    data: Path | None = None,
) -> Path:
    """Resume a single run; None keeps what the run began with. See `lifecycle.resume`.

    `checkpoint`, `train`, `test`, `val` and `data` say where the run's inputs lie now.
    """
    places = to_places(checkpoint=checkpoint and (checkpoint,), train=train, test=test, val=val, data=data)
    return lifecycle.resume(TASK, path, places, device=device, workers=workers, log_every=log_every)
