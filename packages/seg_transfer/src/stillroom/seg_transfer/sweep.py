"""One run, or all of them: every initialisation and seed, into one table."""

from functools import partial
from pathlib import Path

from stillroom.backbone import Run, load_checkpoint, read_results
from stillroom.backbone.flags import DeviceName
from stillroom.backbone.sweep import refuse_changed, refuse_other_weights, resume_single, run_all
from stillroom.backbone.table import write_table
from stillroom.seg_transfer import quiet  # noqa: F401  # before all that imports MMSegmentation
from stillroom.seg_transfer.config import SegmentConfig
from stillroom.seg_transfer.record import INITIAL, PER_CLASS
from stillroom.seg_transfer.train import build_plan, prepare, resume_one, train_one


def finetune(config: SegmentConfig) -> Path:
    """Train and measure a segmentation model, or all those of a sweep, and return the run directory.

    A sweep's directory gets one run directory for each and table.json; runs that are done are not done again, one that
    was stopped goes on.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    run = Run.start(config.device)
    begin, go_on = partial(train_one, run=run), partial(resume_one, run=run)
    runs = run_all(config, partial(refuse_stale, run=run), partial(prepare, run=run), begin, go_on)
    if runs != [config] and run.is_main:
        write_table(config, runs, "mIoU", PER_CLASS)
    run.wait()
    run.close()
    return config.out


def refuse_stale(cell: SegmentConfig, run: Run) -> None:
    """Refuse to keep a run whose first weights, images or framework config have changed since.

    Raises:
        ValueError: with what changed.
    """
    refuse_other_weights(cell.out, cell.name, read_results(cell.out).extra["initial_sha256"])
    backbone, _ = load_checkpoint(cell.out / INITIAL)
    refuse_changed(cell.out, build_plan(cell, run, backbone).records)


def resume(
    path: Path, *, device: DeviceName | None = None, workers: int | None = None, log_every: int | None = None
) -> Path:
    """Go on with a single run; see `resume_one`. A sweep goes on when its command is given again.

    Raises:
        ValueError: a sweep's directory; see also `resume_one`.
    """
    return resume_single(path, partial(resume_one, device=device, workers=workers, log_every=log_every))
