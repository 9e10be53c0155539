"""One process writes a run at a time, on whatever machine."""

import json
import os
import re
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stillroom.backbone.atomic import replace_directory
from stillroom.runs import Run, RunDirectory, claims, guard
from stillroom.runs.claims import Claim, ClaimedError, refuse_lost
from stillroom.runs.guard import guarded, share
from stillroom.runs.run import read_metrics
from stillroom.runs.states import write_state


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def write_claim(out: Path, *, silent: float, **changes: object) -> Path:
    """A claim of another process whose last sign of life is `silent` seconds ago."""
    claim = Claim(out)
    claim.file.write_text(json.dumps({**json.loads(claim._text), **changes}))
    os.utime(claim.file, (time.time() - silent,) * 2)
    return claim.file


def test_a_run_that_a_living_process_writes_is_refused(out: Path, run: Run) -> None:
    first = Claim(out)
    first.take()
    sentence = (
        rf"{re.escape(str(out))} is being written by process {os.getpid()} on .* \(since .*\), last sign of life \d+ s "
        r"ago: wait for it or choose another --out \(a claim without a sign of life is taken over after 300 s\)"
    )
    with pytest.raises(ClaimedError, match=sentence), guarded(out, run):
        raise AssertionError("two processes write")
    first.release()
    with guarded(out, run):
        assert Claim(out).file.exists()
    assert not Claim(out).file.exists()


def test_a_claim_of_a_killed_process_of_this_machine_ends_with_it(
    out: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    def die() -> None:
        Claim(out).take()
        os._exit(9)

    process = get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert Claim(out).file.exists()
    with guarded(out, run):
        pass
    assert f"{out} is taken over from process {process.pid} on " in capsys.readouterr().err


def test_another_process_with_the_number_of_the_dead_one_does_not_hold_its_claim(out: Path) -> None:
    write_claim(out, silent=0, process="1")
    Claim(out).take()


def test_another_machines_claim_is_taken_over_after_the_stated_time(out: Path) -> None:
    write_claim(out, silent=claims.STALE - 60, machine="node2", host="node2")
    with pytest.raises(ClaimedError, match=r"is being written by process \d+ on node2"):
        Claim(out).take()
    write_claim(out, silent=claims.STALE + 1, machine="node2", host="node2")
    claim = Claim(out)
    claim.take()
    assert claim.is_held()
    claim.release()


@pytest.mark.parametrize("lives", [True, False])
def test_a_job_that_is_started_again_waits_until_the_claim_of_another_node_lives_or_is_stale(
    out: Path, monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    file = write_claim(out, silent=200, machine="node2")
    later = time.time() if lives else time.time() - 400
    monkeypatch.setattr(claims.time, "sleep", lambda seconds: os.utime(file, (later, later)))
    claim = Claim(out)
    if lives:
        with pytest.raises(ClaimedError, match="is being written by process"):
            claim.take(patient=True)
    else:
        claim.take(patient=True)
        claim.release()


def test_a_torn_claim_counts_by_its_age(out: Path) -> None:
    file = Claim(out).file
    file.write_text('{"host"')
    with pytest.raises(ClaimedError, match="is being written by another process"):
        Claim(out).take()
    os.utime(file, (0, 0))
    Claim(out).take()


def test_signs_of_life_renew_a_claim_and_a_lost_one_is_not_touched(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.01)
    claim = Claim(out)
    claim.take()
    os.utime(claim.file, (0, 0))
    until = time.monotonic() + 5
    while claim.file.stat().st_mtime == 0 and time.monotonic() < until:
        time.sleep(0.01)
    assert time.time() - claim.file.stat().st_mtime < 60
    claim.file.write_text("{}")  # another process took it over
    os.utime(claim.file, (0, 0))
    time.sleep(0.05)
    assert claim.file.stat().st_mtime == 0
    claim.release()
    assert claim.file.exists()


def test_a_process_that_lost_its_claim_writes_no_state(out: Path, run: Run) -> None:
    (out / "state").mkdir(parents=True)
    with guarded(out, run):
        Claim(out).file.write_text("{}")
        with pytest.raises(
            ClaimedError, match="was taken over by another process, because this one gave no sign of life"
        ):
            write_state(out, {"step": 1})
        assert list((out / "state").iterdir()) == []
    refuse_lost(out)


def test_a_refused_run_leaves_no_folder_of_its_claim(tmp_path: Path, run: Run) -> None:
    with pytest.raises(ValueError, match="refused"), guarded(tmp_path / "sweep" / "cell", run):
        raise ValueError("refused")
    assert list(tmp_path.iterdir()) == []


def test_of_many_processes_that_find_a_stale_claim_one_takes_it(out: Path) -> None:
    write_claim(out, silent=0, process="1")
    context = get_context("fork")
    start, stop, got = context.Event(), context.Event(), context.Queue()

    def take() -> None:
        claim = Claim(out)
        start.wait(10)
        try:
            claim.take()
        except ClaimedError:
            got.put(0)
        else:
            got.put(1)
            stop.wait(10)
        got.close()
        got.join_thread()

    processes = [context.Process(target=take) for _ in range(8)]
    for process in processes:
        process.start()
    start.set()
    assert sum(got.get(timeout=20) for _ in processes) == 1
    stop.set()
    for process in processes:
        process.join()


def test_two_processes_share_the_runs_of_a_sweep_and_both_end_with_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "LOOK_AGAIN", 0.05)
    configs = [SimpleNamespace(out=tmp_path / f"cell{index}") for index in range(4)]

    def work(name: str) -> None:
        def do(config: SimpleNamespace) -> None:
            if not config.out.exists():
                time.sleep(0.1)
                config.out.mkdir()
                (config.out / name).write_text("")

        share(configs, do, Run(device=torch.device("cpu")))
        assert all(config.out.exists() for config in configs)

    processes = [get_context("fork").Process(target=work, args=(name,)) for name in ("one", "two")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    done = [[file.name for file in config.out.iterdir()] for config in configs]
    assert all(len(names) == 1 for names in done) and {name for (name,) in done} == {"one", "two"}


def test_every_process_of_a_run_is_refused_by_a_claim(
    out: Path, in_two_processes: Callable[[Callable[[], object]], list]
) -> None:
    first = Claim(out)
    first.take()

    def work() -> str:
        try:
            with guarded(out, Run.start("cpu")):
                return "two runs write"
        except ClaimedError as error:
            return str(error)

    assert all("is being written by process" in text for text in in_two_processes(work))
    first.release()


def test_what_a_killed_process_was_writing_is_removed_with_its_claim(out: Path, run: Run) -> None:
    """And nothing of another run."""
    for name in (".run.12345678.partial/model", "run/.config.json.12345678.partial", "run/.student.12345678.old/model"):
        (out.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (out.parent / name).write_text("")
    for name in (".run2.12345678.partial", "run/config.json"):
        (out.parent / name).write_text("")
    with guarded(out, run):
        assert sorted(file.name for file in out.parent.rglob("*") if file.name != ".run.claim") == [
            ".run2.12345678.partial",
            "config.json",
            "run",
        ]


@pytest.mark.parametrize("text", ["[1]", "null", '{"host": "h"}', '{"machine": 1, "pid": "x"}'])
def test_a_damaged_claim_counts_by_its_age(out: Path, text: str) -> None:
    file = Claim(out).file
    file.write_text(text)
    with pytest.raises(ClaimedError, match="is being written by another process"):
        Claim(out).take()
    os.utime(file, (time.time() - 301,) * 2)
    claim = Claim(out)
    claim.take()
    claim.release()


def test_a_disk_that_is_full_at_the_claim_leaves_none(out: Path, tmp_path: Path) -> None:
    def take() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(OSError, match="File too large") as caught:
            Claim(out).take()
        os._exit(7 if caught.value.filename == str(Claim(out).file) else 1)

    process = get_context("fork").Process(target=take)
    process.start()
    process.join()
    assert process.exitcode == 7 and list(tmp_path.iterdir()) == []


def test_a_run_that_lost_its_claim_logs_nothing_more_and_ends(out: Path, run: Run) -> None:
    with pytest.raises(ClaimedError, match="was taken over by another process"), guarded(out, run):
        directory = RunDirectory.create(out, "{}", run)
        directory.log(1, {"loss": 1.0})
        write_claim(out, silent=0, id="another")
        with pytest.raises(ClaimedError):
            directory.log(2, {"loss": 1.0})
        directory.close()
    assert [row["step"] for row in read_metrics(out)] == [1]
    Claim(out).file.unlink()


def test_what_a_run_with_a_longer_name_is_writing_is_not_removed(tmp_path: Path, run: Run) -> None:
    with replace_directory(tmp_path / "lr0.1") as partial, guarded(tmp_path / "lr0", run):
        assert partial.exists()
