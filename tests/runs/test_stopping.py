"""Saving by the clock and by signals."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from stillroom.backbone.command import report_errors
from stillroom.backbone.stopping import EXIT_CODE, Stopped, stoppable
from stillroom.runs import Run, RunDirectory, saving
from stillroom.runs.guard import guarded
from stillroom.runs.run_files import STATE
from stillroom.runs.saving import SaveClock
from stillroom.runs.states import read_state


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_a_state_after_the_step_and_ends_with_its_own_code(
    tmp_path: Path, run: Run, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[int] = []

    def main() -> None:
        with stoppable():
            directory = RunDirectory.create(tmp_path / "run", "{}", run)
            for step in range(1, 9):
                if step == 3:
                    os.kill(os.getpid(), number)
                steps.append(step)
                if directory.is_due(step, None, 10.0):
                    directory.save_state({"step": step})

    with pytest.raises(SystemExit) as caught:
        report_errors(main)()
    assert caught.value.code == EXIT_CODE == 75
    assert steps == [1, 2, 3] and read_state(tmp_path / "run" / STATE)["step"] == 3
    said = f"stopped: {number.name}: the state of step 3 is saved; `resume {tmp_path / 'run'}` goes on from there"
    assert said in capsys.readouterr().err


def exit_code_of(work: Callable[[], object]) -> int:
    """The exit code of a process that does the work; 1 if it comes to its end."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_outside_of_a_loop_a_signal_ends_the_process_at_once_and_its_claim(
    tmp_path: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    def before() -> None:
        with guarded(tmp_path / "run", run):
            assert (tmp_path / ".run.claim").exists()
            os.kill(os.getpid(), signal.SIGTERM)

    def after() -> None:
        directory = RunDirectory.create(tmp_path / "run", "{}", run)
        with stoppable():
            assert not directory.is_due(1, None, 10.0)
            directory.close()  # the loop is over
            os.kill(os.getpid(), signal.SIGUSR1)

    assert exit_code_of(before) == 75 and not (tmp_path / ".run.claim").exists()
    assert "stopped: SIGTERM outside of training: `resume` goes on from the last state" in capfd.readouterr().err
    assert exit_code_of(after) == 75


def test_a_signal_is_not_lost_where_exceptions_are_swallowed() -> None:
    def work() -> None:
        os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGTERM))
        with stoppable():
            os.fork()

    assert exit_code_of(work) == 75


def test_signal_handlers_are_those_before_when_the_run_is_over() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stoppable():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    entered = []
    thread = threading.Thread(target=lambda: [entered.append(True) for _ in [stoppable().__enter__()]])
    thread.start()  # a run in a thread of somebody else's program receives none
    thread.join()
    assert entered and signal.getsignal(signal.SIGTERM) is before


def test_a_worker_process_ignores_the_signals_of_its_scheduler() -> None:
    with stoppable():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_states_are_due_by_the_clock_and_by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    clock = SaveClock(0, 1)
    due = []
    for step in range(1, 13):
        now[0] += 120.0
        due.append(clock.is_due(step, None, 10.0))
    assert [step for step, is_due in enumerate(due, 1) if is_due] == [5, 10]
    assert [step for step in range(1, 9) if clock.is_due(step, 4, 0.0)] == [4, 8]
    assert clock.is_due(3, 4, 10.0) is False and clock.is_due(4, 4, 10.0)


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(
    tmp_path: Path, in_two_processes: Callable[[Callable[[], object]], list]
) -> None:
    (tmp_path / "run" / "state").mkdir(parents=True)

    def work() -> int:
        run = Run.start("cpu")
        directory, _ = RunDirectory.reopen(tmp_path / "run", run)
        try:
            with stoppable():
                for step in range(1, 20):
                    if step == 3 and run.rank == 1:
                        os.kill(os.getpid(), signal.SIGTERM)
                    if directory.is_due(step, None, 10.0):
                        directory.save_state({"step": step})
        except Stopped:
            return step
        return 0

    assert in_two_processes(work) == [4, 4]
    assert read_state(tmp_path / "run" / STATE) == {"step": 4, "world_size": 2}


def test_a_signal_before_a_run_begins_ends_its_command_with_the_same_code(capfd: pytest.CaptureFixture[str]) -> None:
    """While libraries are imported, images listed and nets built."""
    assert exit_code_of(report_errors(lambda: os.kill(os.getpid(), signal.SIGUSR1))) == 75
    assert "stopped: SIGUSR1" in capfd.readouterr().err
