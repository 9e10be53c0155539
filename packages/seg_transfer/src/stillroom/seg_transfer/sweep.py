"""One run, or all of them: every initialisation and seed, into one table."""

from functools import partial
from pathlib import Path

from stillroom.backbone import Run, read_results
from stillroom.backbone.results import RESULTS
from stillroom.backbone.run import DeviceName
from stillroom.backbone.sweep import once, refuse_other_weights, refuse_taken, resume_single, split
from stillroom.backbone.table import write_table
from stillroom.seg_transfer.config import SegmentConfig
from stillroom.seg_transfer.data import read_data, read_framework, read_framework_config
from stillroom.seg_transfer.record import PER_CLASS, protocol
from stillroom.seg_transfer.train import resume_one, train_one


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
        write_table(config, cells, "mIoU", PER_CLASS)
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
