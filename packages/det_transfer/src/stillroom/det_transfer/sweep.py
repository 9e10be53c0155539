"""One run, or all of them: every initialisation and seed, into one table."""

from functools import partial
from pathlib import Path

from stillroom.backbone import Run, read_results
from stillroom.backbone.flags import DeviceName
from stillroom.backbone.sweep import refuse_changed, refuse_other_weights, resume_single, run_all
from stillroom.backbone.table import write_table
from stillroom.det_transfer.backend import find_backend
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import forget
from stillroom.det_transfer.record import PER_CLASS
from stillroom.det_transfer.train import prepare, resume_one, train_one


def finetune(config: DetectConfig) -> Path:
    """Train and measure a detector, or all those of a sweep, and return the run directory.

    A sweep's directory gets one run directory for each and table.json; runs that are done are not done again, one that
    was stopped goes on.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    find_backend(config.backend)
    forget()
    run = Run.start(config.device)
    begin, go_on = partial(train_one, run=run), partial(resume_one, run=run)
    runs = run_all(config, refuse_stale, partial(prepare, run=run), begin, go_on)
    if runs != [config] and run.is_main:
        write_table(config, runs, "AP", PER_CLASS)
    run.wait()
    run.close()
    return config.out


def refuse_stale(cell: DetectConfig) -> None:
    """Refuse to keep a run whose first weights, images or boxes have changed since.

    Raises:
        ValueError: with what changed.
    """
    refuse_other_weights(cell.out, cell.name, read_results(cell.out).extra["initial_sha256"])
    refuse_changed(cell.out, find_backend(cell.backend).read(cell).records)


def resume(
    path: Path, *, device: DeviceName | None = None, workers: int | None = None, log_every: int | None = None
) -> Path:
    """Go on with a single run; see `resume_one`. A sweep goes on when its command is given again.

    Raises:
        ValueError: a sweep's directory; see also `resume_one`.
    """
    forget()
    return resume_single(path, partial(resume_one, device=device, workers=workers, log_every=log_every))
