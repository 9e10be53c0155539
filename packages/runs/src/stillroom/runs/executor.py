"""The runs of a sweep as jobs of their own, by submitit: on this machine, or under SLURM. Imports no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stillroom.backbone.errors import sentence_for

JOBS = "jobs"
"""The folder in a sweep's directory that holds submitit's files: each job's output, and its pickled call."""
TIMEOUT_MINUTES = 24 * 60
"""Minutes that a job may take, unless `timeout_min` is set; submitit's own default is 5."""


def check_executor(executor: str, options: Sequence[str]) -> None:
    """Refuse, by a ValueError, an executor that is not installed, and options that have no effect or no value."""
    if executor == "submitit" and find_spec("submitit") is None:
        raise ValueError("--executor submitit needs submitit: pip install 'stillroom-runs[submitit]'")
    if options and executor != "submitit":
        raise ValueError(f"--executor-options {options[0]} is for submitit: pass --executor submitit, or leave it out")
    for option in options:
        if not all(option.partition("=")):
            raise ValueError(f"--executor-options holds {option}: pass NAME=VALUE, such as timeout_min=600")


@dataclass(frozen=True)
class Job:
    """A call in a job: it returns None, or the sentence of an error that is for people.

    Args:
        call: idempotent, for a job may be started again.
    """

    call: Callable[[], object]

    def __call__(self) -> str | None:
        try:
            self.call()
        except Exception as error:
            if (sentence := sentence_for(error)) is not None:
                return sentence
            raise
        return None

    def checkpoint(self) -> Any:
        """What submitit submits again when SLURM stops a job for a while, or at its time limit: the same call."""
        from submitit.helpers import DelayedSubmission  # noqa: PLC0415  # an extra

        return DelayedSubmission(self)


def submit_all(calls: Mapping[str, Callable[[], object]], folder: Path, options: Sequence[str] = ()) -> None:
    """Submit each call as a job, and wait for all of them.

    Args:
        calls: by the job's name; each is pickled and called in a process of its own, and again if SLURM requeues it.
        folder: of the jobs' files; on several machines, a shared folder.
        options: `NAME=VALUE` of submitit's `AutoExecutor.update_parameters`; `cluster` is slurm, local or debug, by
            default slurm where there is one.

    Raises:
        ValueError: an option that submitit does not know; jobs that failed, with the sentence of the first.
    """
    import submitit  # noqa: PLC0415  # an extra

    given = {name: _number(value) for name, _, value in (option.partition("=") for option in options)}
    executor = submitit.AutoExecutor(folder=folder, cluster=given.pop("cluster", None))
    try:
        executor.update_parameters(**{"timeout_min": TIMEOUT_MINUTES, **given})
    except (NameError, TypeError, AssertionError) as error:
        raise ValueError(f"--executor-options: submitit refuses {' '.join(options)}: {error}") from error
    jobs: dict[str, Any] = {}
    failed: dict[str, str] = {}
    try:
        for name, call in calls.items():
            executor.update_parameters(name=name[:60])
            jobs[name] = executor.submit(Job(call))
        for name, job in jobs.items():
            try:
                sentence = job.result()
            except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as error:
                sentence = str(error).strip().splitlines()[-1]
            if sentence is not None:
                failed[name] = sentence
    except BaseException:
        for job in jobs.values():
            job.cancel()
        raise
    if failed:
        name, sentence = next(iter(failed.items()))
        raise ValueError(f"{len(failed)} of {len(jobs)} jobs failed, see {folder}; the first is {name}: {sentence}")


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
