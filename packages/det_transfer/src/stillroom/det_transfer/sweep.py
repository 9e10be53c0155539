"""One run, or all of them: every initialisation and seed, into one table."""

from functools import partial
from pathlib import Path

from stillroom.backbone import Run, read_results
from stillroom.backbone.results import RESULTS
from stillroom.backbone.run import DeviceName
from stillroom.backbone.sweep import once, refuse_other_weights, refuse_taken, resume_single, split
from stillroom.backbone.table import write_table
from stillroom.det_transfer.backend import find_backend
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import forget
from stillroom.det_transfer.record import PER_CLASS
from stillroom.det_transfer.train import fingerprints, resume_one, train_one


def finetune(config: DetectConfig) -> Path:
    """Train and measure a detector, or all those of a sweep, and return the run directory.

    A sweep's directory gets one run directory for each and table.json; runs that are done are not done again, one that
    was stopped goes on.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    find_backend(config.backend)
    forget()
    cells = split(config)
    alone = cells == [config]
    refuse_taken(config.out, alone=alone)
    run = Run.start(config.device)
    for cell in cells:
        refuse_stale(cell)
    for cell in cells:
        once(cell, (), partial(train_one, run=run), partial(resume_one, run=run))
    if not alone and run.is_main:
        write_table(config, cells, "AP", PER_CLASS)
    run.wait()
    run.close()
    return config.out


def refuse_stale(cell: DetectConfig) -> None:
    """Refuse to keep a run whose first weights, images or boxes have changed since.

    Raises:
        ValueError: with what changed.
    """
    if not (cell.out / RESULTS).exists():
        return
    found = read_results(cell.out)
    refuse_other_weights(cell.out, cell.name, found.extra["initial_sha256"])
    if fingerprints(find_backend(cell.backend).read(cell)) != {
        role: record.fingerprint for role, record in found.datasets.items()
    }:
        raise ValueError(f"the images or boxes changed since {cell.out} was done: choose another --out")


def resume(
    path: Path, *, device: DeviceName | None = None, workers: int | None = None, log_every: int | None = None
) -> Path:
    """Go on with a single run; see `resume_one`. A sweep goes on when its command is given again.

    Raises:
        ValueError: a sweep's directory; see also `resume_one`.
    """
    forget()
    return resume_single(path, partial(resume_one, device=device, workers=workers, log_every=log_every))
