"""Start and resume segmentation runs: what this package fills into the life cycle of fine-tuning."""

from stillroom.seg_transfer import quiet  # noqa: F401  # before anything imports MMSegmentation

# isort: split

from dataclasses import replace
from functools import partial
from pathlib import Path

from stillroom.backbone.flags import DeviceName, Workers
from stillroom.finetune import lifecycle, table
from stillroom.finetune.lifecycle import Task
from stillroom.runs.configs import load_config, to_places
from stillroom.runs.sweep import refuse_unresumable
from stillroom.seg_transfer.config import SegmentConfig, check
from stillroom.seg_transfer.record import PACKAGE, PER_CLASS, summary
from stillroom.seg_transfer.states import refuse_user_config
from stillroom.seg_transfer.train import Plan, prepare, read_records, train

TASK: Task[SegmentConfig, Plan] = Task(
    package=PACKAGE,
    config=SegmentConfig,
    check=check,
    read_records=lambda config, run: read_records(config),
    prepare=prepare,
    train=train,
    tabulate=partial(table.tabulate, metric="mIoU", per_class=PER_CLASS),
    begun=("*/vis_data/scalars.json", "iter_*.pth", "epoch_*.pth"),  # MMEngine's
)

report = partial(table.report, summary=summary)
"""Run directory -> what a command prints at its end."""


def finetune(config: SegmentConfig) -> Path:
    """Train and evaluate a segmentation model, or all of a sweep, and return the run directory.

    See `lifecycle.finetune`.
    """
    return lifecycle.finetune(TASK, config)


def resume(
    path: Path,
    *,
    device: DeviceName | None = None,
    workers: Workers | None = None,
    log_every: int | None = None,
    checkpoint: str | None = None,
    data: Path | None = None,
    framework_config: Path | None = None,
    trust_run: bool = False,
) -> Path:
    """Resume a single run; None keeps what the run began with. See `lifecycle.resume`.

    `checkpoint`, `data` and `framework_config` say where the run's inputs lie now.

    Raises:
        ValueError: a run by a config of MMSegmentation, or a state with other objects than MMEngine's, without
            `trust_run`: both can run code.
    """
    refuse_unresumable(path)
    if not trust_run:
        refuse_user_config(path, load_config(path, SegmentConfig))
    places = to_places(checkpoint=checkpoint and (checkpoint,), data=data, framework_config=framework_config)
    task = replace(TASK, train=partial(train, trusted=trust_run))
    return lifecycle.resume(task, path, places, device=device, workers=workers, log_every=log_every)
