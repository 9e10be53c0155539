"""The runs of a sweep as jobs of their own, by submitit: on this machine, or under SLURM. Imports no torch."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from stillroom.backbone.errors import sentence_for
from stillroom.backbone.launch import VARIABLES, adopt_slurm
from stillroom.backbone.stopping import Stopped, requested_stop, stoppable
from stillroom.runs.claims import ClaimedError

JOBS = "jobs"
"""The folder in a sweep's directory that holds submitit's files: each job's output, and its pickled call."""
TIMEOUT_MINUTES = 24 * 60
"""Minutes that a job may take, unless `timeout_min` is set; submitit's own default is 5."""
LOOK_AGAIN = 10.0
"""Seconds between two tries of a job whose run another process writes."""


def check_executor(executor: str, options: Sequence[str]) -> None:
    """Refuse, by a ValueError, an executor that is not installed, one command of several processes that would each
    submit the jobs, and options that have no effect or no value.
    """
    if executor == "submitit":
        adopt_slurm()
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise ValueError("--executor submitit submits the jobs itself: start its command without torchrun and srun")
        if find_spec("submitit") is None:
            raise ValueError("--executor submitit needs submitit: pip install 'stillroom-runs[submitit]'")
    if options and executor != "submitit":
        raise ValueError(f"--executor-options {options[0]} is for submitit: pass --executor submitit, or leave it out")
    for option in options:
        if not all(option.partition("=")):
            raise ValueError(f"--executor-options holds {option}: pass NAME=VALUE, such as timeout_min=600")


@dataclass(frozen=True)
class Job:
    """A call in a job: it returns None, or the sentence of an error that is for people.

    A job of an earlier command may still be at the run: then it waits until that has ended, and goes on from there.

    Args:
        call: idempotent, for a job may be started again.
    """

    call: Callable[[], object]

    def __call__(self) -> str | None:
        while True:
            try:
                self.call()
                return None
            except ClaimedError as error:
                print(f"note: waiting: {error}", file=sys.stderr, flush=True)
                time.sleep(LOOK_AGAIN)
            except Exception as error:
                if (sentence := sentence_for(error)) is not None:
                    return sentence
                raise

    def checkpoint(self) -> Any:
        """What submitit submits again when SLURM stops a job for a while, or at its time limit: the same call."""
        from submitit.helpers import DelayedSubmission  # noqa: PLC0415  # an extra

        return DelayedSubmission(self)


def submit_all(calls: Mapping[str, Callable[[], object]], folder: Path, options: Sequence[str] = ()) -> None:
    """Submit each call as a job, and wait for all of them. What ends this process by an exception cancels them.

    Args:
        calls: by the job's name; each is pickled and called in a process of its own, and again if SLURM requeues it.
        folder: of the jobs' files; on several machines, a shared folder.
        options: `NAME=VALUE` of submitit's `AutoExecutor.update_parameters`; `cluster` is slurm, local or debug, by
            default slurm where there is one.

    Raises:
        ValueError: an option that submitit or SLURM refuses; jobs that failed, with the sentence of the first.
        Stopped: by a signal; the jobs are cancelled.
    """
    import submitit  # noqa: PLC0415  # an extra
    from submitit.core.utils import FailedSubmissionError, UncompletedJobError  # noqa: PLC0415

    with _refusing(options, NameError, TypeError, ValueError, AssertionError, RuntimeError):
        pairs = (option.partition("=") for option in options)
        given: Any = {name: _number(value) for name, _, value in pairs}
        executor = submitit.AutoExecutor(folder=folder, cluster=given.pop("cluster", None))
        executor.update_parameters(**{"timeout_min": TIMEOUT_MINUTES, **given})
        for name in ("timeout_min", "nodes", "tasks_per_node", "cpus_per_task"):
            if given.get(name, 1) < 1:
                raise ValueError(f"{name} must be at least 1")
    jobs: dict[str, Any] = {}
    failed: dict[str, str] = {}
    with stoppable():
        try:
            for name, call in calls.items():
                _refuse_stopped()
                executor.update_parameters(name=name[:60])
                with _refusing(options, UncompletedJobError, FailedSubmissionError), _apart():
                    jobs[name] = executor.submit(Job(call))
            _wait_for(jobs.values())
            for name, job in jobs.items():
                if (sentence := _sentence_of(job)) is not None:
                    failed[name] = sentence
        except BaseException:
            for job in jobs.values():
                job.cancel(check=False)
            raise
    if failed:
        name, sentence = next(iter(failed.items()))
        raise ValueError(f"{len(failed)} of {len(jobs)} jobs failed, see {folder}; the first is {name}: {sentence}")


@contextmanager
def _refusing(options: Sequence[str], *errors: type[Exception]) -> Iterator[None]:
    """Around calls of submitit: what it, or SLURM, does not take is an error for people."""
    try:
        yield
    except errors as error:
        given = f"--executor-options {' '.join(options)}" if options else "--executor submitit"
        raise ValueError(f"{given}: submitit refuses: {' '.join(str(error).split())}") from error


@contextmanager
def _apart() -> Iterator[None]:
    """Let a job inherit nothing that would make it a part of this process: no variables of torchrun, and no SIGINT that
    is ignored, as in the background of a script, since submitit cancels by it.
    """
    names = [name for name in os.environ if name in VARIABLES or name.startswith("TORCHELASTIC_")]
    hidden = {name: os.environ.pop(name) for name in names}
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN and current_thread() is main_thread()
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        os.environ.update(hidden)
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _refuse_stopped() -> None:
    """End the command where a signal has asked for it; before, it waits for this."""
    if name := requested_stop():
        raise Stopped(f"{name}: the jobs are cancelled; the same command, repeated, goes on from their last states")


def _wait_for(jobs: Iterable[Any]) -> None:
    for job in jobs:
        while not job.done():
            _refuse_stopped()
            time.sleep(0.5)


def _sentence_of(job: Any) -> str | None:
    """Why a job that has ended failed; None: it did not."""
    from submitit.core.utils import UncompletedJobError  # noqa: PLC0415  # an extra

    try:
        return next((sentence for sentence in job.results() if sentence is not None), None)  # one of each task
    except UncompletedJobError as error:
        return str(error).strip().splitlines()[-1]


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
