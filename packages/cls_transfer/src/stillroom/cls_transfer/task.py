"""Start and resume classification runs: what this package fills into the life cycle of fine-tuning."""

from pathlib import Path

from stillroom.backbone.finetune import lifecycle
from stillroom.backbone.finetune.lifecycle import Task
from stillroom.backbone.flags import DeviceName
from stillroom.cls_transfer.config import AXES, UNIONS, ClassifyConfig, check
from stillroom.cls_transfer.data import read_sets
from stillroom.cls_transfer.record import PACKAGE
from stillroom.cls_transfer.table import report, tabulate
from stillroom.cls_transfer.train import Prepared, prepare, train

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
    chosen=("lrs",),
    unions=UNIONS,
)


def finetune(config: ClassifyConfig) -> Path:
    """Train and test a classifier, or every one of a sweep, and return the run directory; see `lifecycle.finetune`."""
    return lifecycle.finetune(TASK, config)


def resume(
    path: Path, *, device: DeviceName | None = None, workers: int | None = None, log_every: int | None = None
) -> Path:
    """Resume a single run; None keeps what the run began with. See `lifecycle.resume`."""
    return lifecycle.resume(TASK, path, device=device, workers=workers, log_every=log_every)
