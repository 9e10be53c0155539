"""Start and resume detection runs: what this package fills into the life cycle of fine-tuning."""

from functools import partial
from pathlib import Path

from stillroom.backbone.flags import DeviceName, Workers
from stillroom.det_transfer.backends import find_backend
from stillroom.det_transfer.config import DetectConfig, check, refuse_untrusted
from stillroom.det_transfer.data import clear_cache
from stillroom.det_transfer.record import PACKAGE, PER_CLASS, summary
from stillroom.det_transfer.train import Prepared, prepare, train
from stillroom.finetune import lifecycle, table
from stillroom.finetune.lifecycle import Task
from stillroom.runs.configs import to_places
from stillroom.runs.sweep import refuse_unresumable

TASK: Task[DetectConfig, Prepared] = Task(
    package=PACKAGE,
    config=DetectConfig,
    check=check,
    read_records=lambda config, run: find_backend(config.backend).read(config).records,
    prepare=prepare,
    train=train,
    tabulate=partial(table.tabulate, metric="AP", per_class=PER_CLASS),
    begun=("metrics.json", "model_*.pth"),  # Detectron2's
)

report = partial(table.report, summary=summary)
"""Run directory -> what a command prints at its end."""


def finetune(config: DetectConfig) -> Path:
    """Train and evaluate a detector, or all of a sweep, and return the run directory; see `lifecycle.finetune`."""
    find_backend(config.backend)
    clear_cache()
    return lifecycle.finetune(TASK, config)


def resume(
    path: Path,
    *,
    device: DeviceName | None = None,
    workers: Workers | None = None,
    log_every: int | None = None,
    checkpoint: str | None = None,
    data: Path | None = None,
    train: tuple[Path, Path] | None = None,
    val: tuple[Path, Path] | None = None,
    framework_config: Path | None = None,
    trust_run: bool = False,
) -> Path:
    """Resume a single run; None keeps what the run began with. See `lifecycle.resume` and `refuse_untrusted`.

    `checkpoint`, `data`, `train`, `val` and `framework_config` say where the run's inputs lie now.
    """
    refuse_unresumable(path)
    refuse_untrusted(path, trust_run)
    clear_cache()
    places = to_places(
        checkpoint=checkpoint and (checkpoint,), data=data, train=train, val=val, framework_config=framework_config
    )
    return lifecycle.resume(TASK, path, places, device=device, workers=workers, log_every=log_every)
