"""The processes of a run fail together."""

import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from stillroom.backbone.command import report_errors
from stillroom.runs import Run
from stillroom.runs.guard import guarded
from stillroom.runs.run import DivergedError
from twins import in_a_process

Processes = Callable[[Callable[[], object]], list]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_fails_ends_the_other_with_its_sentence_within_seconds(
    tmp_path: Path, in_two_processes: Processes, failing: int
) -> None:
    def work() -> tuple[str, float]:
        run = Run.start("cpu")
        began = time.monotonic()
        try:
            with guarded(tmp_path / "run", run):
                if run.rank == failing:
                    raise DivergedError("the loss is nan at step 3: lower --lr")
                run.sum(torch.ones(1))  # waits for the other
        except ValueError as error:
            return str(error), time.monotonic() - began
        return "went on", 0.0

    texts, seconds = zip(*in_two_processes(work), strict=True)
    said = "the loss is nan at step 3: lower --lr"
    assert texts[failing] == said
    assert texts[1 - failing] == f"process {failing} of the run has failed: {said}"
    assert max(seconds) < 8
    assert not list(tmp_path.glob(".*.claim"))


@pytest.mark.parametrize("signalled", [0, 1])
def test_a_signal_to_one_process_outside_of_training_ends_the_other_with_the_same_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], signalled: int
) -> None:
    from stillroom.runs import peers

    monkeypatch.setattr(peers, "GRACE", 0.3)
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

    def command(rank: int) -> None:
        os.environ |= {**world, "RANK": str(rank)}
        with guarded(tmp_path / "run", run := Run.start("cpu")):
            if rank == signalled:
                os.kill(os.getpid(), signal.SIGTERM)
            run.sum(torch.ones(1))  # waits for the other

    processes = [in_a_process(report_errors(partial(command, rank))) for rank in (0, 1)]
    for one in processes:
        one.join(20)
    assert [one.exitcode for one in processes] == [75, 75]
    said = capfd.readouterr().err
    assert "stopped: another process of the run has ended without an error" in said and "gloo" not in said
    assert not list(tmp_path.glob(".*.claim"))


def test_a_process_that_hangs_beside_a_failed_one_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a collective operation of NCCL, which raises nothing."""
    from stillroom.runs import peers

    monkeypatch.setattr(peers, "GRACE", 0.3)
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

    def process(rank: int) -> None:
        os.environ |= {**world, "RANK": str(rank)}
        with guarded(tmp_path / "run", Run.start("cpu")):
            if rank == 1:
                raise ValueError("broken.png is not an image")
            time.sleep(60)

    began = time.monotonic()
    processes = [in_a_process(partial(process, rank)) for rank in (0, 1)]
    for one in processes:
        one.join(20)
    assert [one.exitcode for one in processes] == [2, 1] and time.monotonic() - began < 15
    assert not list(tmp_path.glob(".*.claim")), "the claim ends with the process that held it"


def test_a_run_of_one_process_fails_as_it_is(tmp_path: Path, run: Run) -> None:
    with pytest.raises(DivergedError, match=r"^diverged$"), guarded(tmp_path / "run", run):
        raise DivergedError("diverged")


def test_a_process_whose_partner_stopped_says_so_and_writes_no_log(
    in_two_processes: Callable[..., list], capfd: pytest.CaptureFixture[str]
) -> None:
    def part() -> list[int]:
        def main() -> None:
            run = Run.start("cpu")
            if run.rank == 1:
                os._exit(0)
            run.sum(torch.zeros(1))

        with pytest.raises(SystemExit) as exited:
            report_errors(main)()
        return [exited.value.code]

    with pytest.raises(Exception, match=r"returned-1\.pt"):
        in_two_processes(part)
    assert "another process of the run has stopped: its own error says why" in capfd.readouterr().err


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
