"""One run, or a sweep: a run for each checkpoint and seed, and one table."""

from functools import partial
from pathlib import Path

from stillroom.backbone import Run, read_results
from stillroom.backbone.flags import DeviceName
from stillroom.backbone.sweep import refuse_changed, refuse_other_weights, resume_single, run_all
from stillroom.backbone.table import write_table
from stillroom.det_transfer.backends import find_backend
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import clear_cache
from stillroom.det_transfer.record import PER_CLASS
from stillroom.det_transfer.train import prepare, resume_one, train_one


def finetune(config: DetectConfig) -> Path:
    """Train and evaluate a detector, or each one of a sweep, and return the run directory.

    A sweep's directory gets a run directory for each run, and table.json. Finished runs are kept, an interrupted one is
    resumed.

    Raises:
        ValueError: invalid input.
    """
    find_backend(config.backend)
    clear_cache()
    run = Run.start(config.device)
    start, resume_run = partial(train_one, run=run), partial(resume_one, run=run)
    runs = run_all(config, refuse_stale, partial(prepare, run=run), start, resume_run)
    if runs != [config] and run.is_main:
        write_table(config, runs, "AP", PER_CLASS)
    run.wait()
    run.close()
    return config.out


def refuse_stale(config: DetectConfig) -> None:
    """Refuse to keep a finished run whose initial weights, images or boxes have changed since.

    Raises:
        ValueError: with what changed.
    """
    refuse_other_weights(config.out, config.name, read_results(config.out).extra["initial_sha256"])
    refuse_changed(config.out, find_backend(config.backend).read(config).records)


def resume(
    path: Path, *, device: DeviceName | None = None, workers: int | None = None, log_every: int | None = None
) -> Path:
    """Resume a single run; see `resume_one`. A sweep is resumed by repeating its command.

    Raises:
        ValueError: a sweep's directory; see also `resume_one`.
    """
    clear_cache()
    return resume_single(path, partial(resume_one, device=device, workers=workers, log_every=log_every))
