"""What stands around everything that writes a run: its claim, the signals that stop it, its processes' common end."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillroom.backbone.atomic import remove_partials
from stillroom.backbone.stopping import stoppable
from stillroom.runs.claims import Claim, ClaimedError, release_all
from stillroom.runs.peers import failing_together
from stillroom.runs.run import Run
from stillroom.runs.states import StateWriter

LOOK_AGAIN = 10.0
"""Seconds between two looks at the runs of a sweep that other processes write."""


@contextmanager
def guarded(out: Path, run: Run, *, patient: bool = False) -> Iterator[None]:
    """Around everything that writes a run: no other run of a process, here or elsewhere, writes it meanwhile; SIGTERM
    and SIGUSR1 stop it with its state saved; if one of its processes fails, all end.

    Args:
        out: the run directory; it need not exist.
        run: this process.
        patient: see `Claim.take`.

    Raises:
        ClaimedError: a living process writes it; in every process.
    """
    with stoppable(release_all), failing_together(run):
        claim, refused = Claim(out), None
        if run.is_main:
            try:
                claim.take(patient=patient)
                remove_partials(out)
            except ClaimedError as error:
                refused = str(error)
        if refused := run.gather(refused)[0]:  # the same in every process
            raise ClaimedError(refused)
        try:
            yield
        finally:
            if run.is_main:
                StateWriter.finish(out)
                claim.release()


def share(configs: Sequence[Any], do: Callable[[Any], object], run: Run, *, patient: bool = False) -> None:
    """Do the runs of a sweep, or one run alone, guarded; processes on several machines may share a sweep.

    A run of a sweep that another process writes is skipped, and looked at again at the end: until it is finished, or
    the other has died and it is resumed here.

    Args:
        configs: of the runs; `out` of each is its directory.
        do: does, resumes or keeps a run.
        run: this process.
        patient: for a run alone, see `Claim.take`.
    """
    left, round_ = list(configs), 0
    while left:
        claimed = []
        for config in left:
            try:
                with guarded(config.out, run, patient=patient and len(configs) == 1):
                    do(config)
            except ClaimedError as error:
                if len(configs) == 1:
                    raise
                if run.is_main and round_ == 0:
                    print(f"note: skipped for now: {error}", file=sys.stderr)
                claimed.append(config)
        if claimed and len(claimed) == len(left):
            time.sleep(LOOK_AGAIN)
        left, round_ = claimed, round_ + 1
