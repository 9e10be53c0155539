"""Jobs of submitit; its local executor starts real processes."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from stillroom.backbone.command import report_errors
from stillroom.backbone.launch import VARIABLES
from stillroom.runs.claims import ClaimedError
from stillroom.runs.executor import Job, check_executor, submit_all
from twins import in_a_process


@pytest.mark.slow
def test_each_call_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("submitit")

    def write(name: str) -> None:
        import os

        (tmp_path / name).write_text(str(os.getpid()))

    submit_all({name: lambda name=name: write(name) for name in ("a", "b")}, tmp_path / "jobs", ("cluster=local",))
    import os

    assert len({(tmp_path / name).read_text() for name in ("a", "b")} | {str(os.getpid())}) == 3


def test_a_failed_job_ends_in_its_sentence_and_the_others_are_done(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    calls = {
        "bad": lambda: (tmp_path / "missing" / "file").write_text(""),
        "good": lambda: (tmp_path / "good").write_text(""),
    }
    with pytest.raises(ValueError, match=r"1 of 2 jobs failed, see .*jobs; the first is bad: .*No such file"):
        submit_all(calls, tmp_path / "jobs", ("cluster=local",))
    assert (tmp_path / "good").exists()


def test_flags_of_jobs_that_cannot_work_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--executor-options timeout_min=5 is for submitit: pass --executor submitit"):
        check_executor("local", ("timeout_min=5",))
    pytest.importorskip("submitit")
    with pytest.raises(ValueError, match="--executor-options holds timeout: pass NAME=VALUE, such as timeout_min=600"):
        check_executor("submitit", ("timeout",))
    with pytest.raises(ValueError, match="--executor-options colour=red: submitit refuses: "):
        submit_all({}, tmp_path / "jobs", ("colour=red",))
    with pytest.raises(ValueError, match=r"--executor-options cluster=bogus: submitit refuses: .* named bogus"):
        submit_all({}, tmp_path / "jobs", ("cluster=bogus",))
    with pytest.raises(ValueError, match=r"cluster=local timeout_min=soon: submitit refuses: .*expected type"):
        submit_all({}, tmp_path / "jobs", ("cluster=local", "timeout_min=soon"))
    with pytest.raises(ValueError, match="tasks_per_node must be at least 1"):
        submit_all({}, tmp_path / "jobs", ("cluster=local", "tasks_per_node=0"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match='cluster=slurm: submitit refuses: Could not detect "srun"'):
        submit_all({}, tmp_path / "jobs", ("cluster=slurm",))


def test_what_slurm_refuses_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    for name, text in {
        "srun": "",
        "sbatch": "echo sbatch: error: invalid partition specified: fast >&2; exit 1",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(
        ValueError, match=r"slurm_partition=fast: submitit refuses: .*invalid partition specified: fast"
    ):
        submit_all({"a": print}, tmp_path / "jobs", ("slurm_partition=fast",))


def test_one_of_several_processes_submits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "--executor submitit submits the jobs itself: start its command without torchrun and srun"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=sentence):
        check_executor("submitit", ())
    monkeypatch.delenv("WORLD_SIZE")
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    for name, value in {"PROCID": "1", "STEP_NUM_TASKS": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(ValueError, match=sentence):
        check_executor("submitit", ())


def test_jobs_inherit_no_variables_of_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    names = {**dict.fromkeys(VARIABLES, "1"), "TORCHELASTIC_RUN_ID": "a"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SBATCH_ACCOUNT", "ours")
    file, wanted = tmp_path / "seen", [*names, "SBATCH_ACCOUNT"]

    def write() -> None:
        import os

        file.write_text(" ".join(name for name in wanted if name in os.environ))

    submit_all({"a": write}, tmp_path / "jobs", ("cluster=local",))
    assert file.read_text() == "SBATCH_ACCOUNT" and os.environ["WORLD_SIZE"] == "1"


def test_a_job_with_several_tasks_is_waited_for(tmp_path: Path) -> None:
    pytest.importorskip("submitit")

    def write() -> None:
        import os

        (tmp_path / os.environ["SUBMITIT_LOCAL_GLOBALID"]).write_text("")

    submit_all({"a": write}, tmp_path / "jobs", ("cluster=local", "tasks_per_node=2"))
    assert (tmp_path / "0").exists() and (tmp_path / "1").exists()


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGINT])
def test_what_ends_the_command_cancels_its_jobs(tmp_path: Path, ended_by: signal.Signals) -> None:
    pytest.importorskip("submitit")

    def work(name: str) -> None:
        import os
        import time

        (tmp_path / name).write_text(str(os.getpid()))
        time.sleep(60)

    def command() -> None:
        if ended_by == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where these tests run in the background
        calls = {name: partial(work, name) for name in ("a", "b")}
        report_errors(lambda: submit_all(calls, tmp_path / "jobs", ("cluster=local",)))()

    process = in_a_process(command)
    wait_until(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in ("a", "b")))
    assert process.pid is not None
    os.kill(process.pid, ended_by)
    process.join(20)
    assert process.exitcode == {signal.SIGTERM: 75, signal.SIGINT: 130}[ended_by]
    pids = [int((tmp_path / name).read_text()) for name in ("a", "b")]
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_jobs_of_a_command_in_the_background_of_a_script_are_cancelled_too(tmp_path: Path) -> None:
    """It ignores SIGINT, which its jobs would inherit, and submitit cancels by that."""
    pytest.importorskip("submitit")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        test_what_ends_the_command_cancels_its_jobs(tmp_path, signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_job_waits_for_an_earlier_one_that_is_still_at_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stillroom.runs.executor.LOOK_AGAIN", 0.01)
    tries = iter([True, True, False])

    def call() -> None:
        if next(tries):
            raise ClaimedError("run is being written by process 7")

    assert Job(call)() is None
    assert capsys.readouterr().err.count("note: waiting: run is being written by process 7") == 2


def wait_until(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_missing_submitit_is_asked_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillroom.runs.executor.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"--executor submitit needs submitit: pip install 'stillroom-runs\[submitit\]'"
    ):
        check_executor("submitit", ())
