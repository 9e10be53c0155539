"""The processes of a run fail together."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stillroom.backbone.command import report_errors
from stillroom.runs import Run
from stillroom.runs.guard import guarded
from stillroom.runs.run import DivergedError

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


def test_a_process_that_hangs_beside_a_failed_one_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a collective operation of NCCL, which raises nothing."""
    import os
    import socket
    from multiprocessing import get_context

    from stillroom.runs import peers

    monkeypatch.setattr(peers, "GRACE", 0.3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def process(rank: int) -> None:
        world = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in world.items()})
        with guarded(tmp_path / "run", Run.start("cpu")):
            if rank == 1:
                raise ValueError("broken.png is not an image")
            time.sleep(60)

    context = get_context("fork")
    processes = [context.Process(target=process, args=(rank,)) for rank in (0, 1)]
    began = time.monotonic()
    for one in processes:
        one.start()
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
