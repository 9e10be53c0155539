"""Processes, seeds and run directories."""

import json
import multiprocessing
import os
import random
import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.backbone.command import report_errors
from stillroom.backbone.errors import sentence_for, unexpected
from stillroom.backbone.seeds import mix_seed, seed_everything
from stillroom.runs import Run, RunDirectory
from stillroom.runs.run import DivergedError
from stillroom.runs.run_files import failing_cleanly, read_config, read_metrics

OTHER = Run(device=torch.device("cpu"), rank=1, world_size=1)  # a process that is not the main one, and waits for none


# --- processes


def test_a_run_without_torchrun_is_one_process_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    run = Run.start("cpu")
    assert run == Run(device=torch.device("cpu"), rank=0, world_size=1) and run.is_main
    tensor = torch.ones(2)
    assert run.sum(tensor) is tensor and tensor.tolist() == [1, 1]
    assert run.gather("x") == ["x"]
    run.wait()
    run.close()


def test_auto_takes_the_cpu_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert Run.start().device == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("cuda", "device cuda is requested and torch sees none: pass --device cpu, or auto"),
        ("mps", "device mps is requested and torch sees none: pass --device cpu, or auto"),
    ],
)
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, device: str, sentence: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=sentence):
        Run.start(device)


def _of_two(rank: int, port: int, folder: Path, answers: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    run = Run.start("cpu")
    directory = RunDirectory.create(folder / "run", "{}", run)
    directory.log(1, {"loss": float(rank)})
    directory.save_state({"step": 1, "rank": rank})
    run.wait()
    answer = [run.rank, run.world_size, run.sum(torch.tensor([rank + 1.0, 10.0])).tolist(), run.gather({"rank": rank})]
    try:
        RunDirectory.create(folder / "run", "{}", run)
    except ValueError as error:
        answer.append(str(error))
    answers.put(answer)
    directory.close()
    run.close()


def test_two_processes_add_up_gather_and_share_one_directory(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # torch is loaded already
    answers = context.Queue()
    processes = [context.Process(target=_of_two, args=(rank, port, tmp_path, answers)) for rank in (0, 1)]
    for process in processes:
        process.start()
    received = sorted(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    out = tmp_path / "run"
    refused = f"{out} exists: choose another --out, or resume it with `resume {out}` or by --if-exists resume"
    everybody = [{"rank": 0}, {"rank": 1}]
    assert received == [[rank, 2, [3.0, 20.0], everybody, refused] for rank in (0, 1)]
    assert read_metrics(tmp_path / "run") == [{"step": 1, "loss": 0.0}]  # the main process alone writes
    assert torch.load(tmp_path / "run" / "state" / "last.pt", weights_only=True) == {
        "step": 1,
        "rank": 0,
        "world_size": 2,
    }


# --- seeds


small = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(st.tuples(small, small, small))
def test_a_mixed_seed_is_a_function_of_its_numbers_and_fits_63_bits(numbers: tuple[int, int, int]) -> None:
    seed = mix_seed(*numbers)
    assert seed == mix_seed(*numbers)
    assert 0 <= seed < 2**63


@settings(deadline=None)
@given(st.tuples(small, small, small), st.tuples(small, small, small))
def test_other_numbers_or_another_order_give_another_seed(one: tuple[int, int, int], two: tuple[int, int, int]) -> None:
    assert (mix_seed(*one) == mix_seed(*two)) == (one == two)


def test_more_numbers_give_another_seed_even_if_they_are_zeros() -> None:
    assert len({mix_seed(1), mix_seed(1, 0), mix_seed(1, 0, 0)}) == 3


def test_neighbours_give_unrelated_seeds() -> None:
    seeds = [mix_seed(seed, epoch, index) for seed in range(3) for epoch in range(10) for index in range(100)]
    assert len(set(seeds)) == 3000
    bits = np.array([[seed >> bit & 1 for bit in range(63)] for seed in seeds])
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.05
    flipped = (bits[1:] ^ bits[:-1]).mean()
    assert flipped == pytest.approx(0.5, abs=0.01)


def test_mixed_seeds_are_those_of_the_version_that_began_a_run() -> None:
    """A run is resumed by other versions, of ours and of NumPy: these numbers must never change."""
    assert mix_seed(0) == 3717377837946358015
    assert mix_seed(1, 2, 3) == 6530208866956668065
    assert mix_seed(42, 0, 7) == 2902741672022253869


def test_seed_everything_seeds_torch_numpy_and_python() -> None:
    def draw(*numbers: int) -> tuple[float, float, float]:
        seed_everything(*numbers)
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    first = draw(1, 2)
    assert draw(1, 2) == first
    assert all(a != b for a, b in zip(draw(1, 3), first, strict=True))


# --- run directories


def test_a_new_run_directory_holds_its_config(tmp_path: Path, run: Run) -> None:
    directory = RunDirectory.create(tmp_path / "deep" / "run", '{"epochs": 2}', run)
    directory.log(1, {"loss": 1.0})
    directory.close()
    assert read_config(tmp_path / "deep" / "run") == '{"epochs": 2}'
    assert (tmp_path / "deep" / "run" / "state").is_dir()
    assert list((tmp_path / "deep" / "run" / "tensorboard").glob("events.*"))


def test_an_existing_directory_is_refused(tmp_path: Path, run: Run) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} exists: choose another --out, or resume it with `resume "):
        RunDirectory.create(tmp_path, "{}", run)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_without_config_is_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} is not a run directory: it has no config.json"):
        read_config(tmp_path)


def test_logged_lines_are_read_back(tmp_path: Path, run: Run) -> None:
    directory = RunDirectory.create(tmp_path / "run", "{}", run)
    directory.log(1, {"loss": 0.5, "lr": 0.1})
    assert read_metrics(tmp_path / "run") == [{"step": 1, "loss": 0.5, "lr": 0.1}]  # at once, before it is closed
    directory.log(2, {"loss": 0.25})
    directory.close()
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2]


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_a_line_torn_by_a_kill_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


@pytest.fixture
def stopped(tmp_path: Path, run: Run) -> Path:
    """A run of 4 logged steps that saved its state at step 2 and was killed while it wrote a line."""
    directory = RunDirectory.create(tmp_path / "run", "{}", run)
    for step in range(1, 5):
        directory.log(step, {"loss": 1 / step})
        if step == 2:
            directory.save_state({"step": 2, "weights": {"w": torch.arange(3.0)}})
    directory.close()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as opened:
        opened.write('{"step": 5, "los')
    return tmp_path / "run"


def test_reopening_gives_the_state_and_cuts_what_came_after_it(stopped: Path, run: Run) -> None:
    directory, state = RunDirectory.reopen(stopped, run)
    assert state is not None and state["step"] == 2
    assert torch.equal(state["weights"]["w"], torch.arange(3.0))
    assert [row["step"] for row in read_metrics(stopped)] == [1, 2]
    directory.log(3, {"loss": 7.0})
    directory.close()
    assert [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 7.0},
    ]


def test_a_run_that_saved_no_state_begins_again(stopped: Path, run: Run) -> None:
    (stopped / "state" / "last.pt").unlink()
    directory, state = RunDirectory.reopen(stopped, run)
    directory.close()
    assert state is None
    assert read_metrics(stopped) == []


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def test_a_hostile_state_is_not_run(stopped: Path, run: Run, tmp_path: Path) -> None:
    torch.save({"step": 2, "config": Hostile(tmp_path / "was-run")}, stopped / "state" / "last.pt")
    with pytest.raises(
        ValueError, match=r"last.pt holds more than tensors .*: remove it, and .* is resumed from its first"
    ):
        RunDirectory.reopen(stopped, run)
    assert not (tmp_path / "was-run").exists()
    assert len(read_metrics(stopped)) == 4  # nothing was cut


def test_a_damaged_state_is_one_sentence(stopped: Path, run: Run) -> None:
    file = stopped / "state" / "last.pt"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"last.pt is damaged, .*: remove it"):
        RunDirectory.reopen(stopped, run)
    assert len(read_metrics(stopped)) == 4


def test_the_last_two_states_are_kept(stopped: Path, run: Run) -> None:
    directory, _ = RunDirectory.reopen(stopped, run)
    directory.save_state({"step": 3, "weights": {"w": torch.zeros(1)}})
    directory.save_state({"step": 4, "weights": {"w": torch.zeros(1)}})
    directory.close()
    steps = {f.name: torch.load(f, weights_only=True)["step"] for f in (stopped / "state").iterdir()}
    assert steps == {"last.pt": 4, "previous.pt": 3}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(stopped: Path, run: Run, value: float) -> None:
    directory, _ = RunDirectory.reopen(stopped, run)
    sentence = "the weights are not finite at step 9: lower --lr; the last good state is kept"
    bad = torch.tensor([1.0, value])
    for part in ({"w": bad}, {"state": {0: {"momentum_buffer": bad}}}):
        with pytest.raises(ValueError, match=sentence):
            directory.save_state({"step": 9, "part": part})
    directory.close()
    assert torch.load(stopped / "state" / "last.pt", weights_only=True)["step"] == 2


def test_only_the_main_process_writes(stopped: Path) -> None:
    before = {f: f.read_bytes() for f in stopped.rglob("*") if f.is_file()}
    directory, state = RunDirectory.reopen(stopped, OTHER)
    assert state is not None
    directory.log(3, {"loss": 0.0})
    directory.save_state({"step": 3})
    directory.close()
    assert {f: f.read_bytes() for f in stopped.rglob("*") if f.is_file()} == before


# --- failures


def broken(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_run_directory_that_cannot_be_finished_is_never_seen(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillroom.runs.run.write_file", broken)
    with pytest.raises(OSError, match="No space left"):
        RunDirectory.create(tmp_path / "run", "{}", run)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_the_logs_names_the_run(stopped: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, _ = RunDirectory.reopen(stopped, run)
    monkeypatch.setattr(directory, "_metrics", SimpleNamespace(write=broken, close=directory._metrics.close))
    with pytest.raises(OSError, match="No space left on device") as caught:
        directory.log(3, {"loss": 1.0})
    assert sentence_for(caught.value).startswith(f"{stopped}: No space left on device; no file is half-written: free")
    directory.close()


def fail(path: Path, error: Exception, *, new: bool) -> None:
    with pytest.raises(type(error)), failing_cleanly(path, new=new):
        raise error


def test_a_new_run_that_is_refused_at_once_leaves_nothing_and_one_with_a_line_or_a_state_stays(
    tmp_path: Path, stopped: Path, run: Run
) -> None:
    RunDirectory.create(tmp_path / "new", "{}", run).close()
    fail(tmp_path / "new", DivergedError("the loss is nan"), new=False)
    assert (tmp_path / "new").exists()  # a resumed run
    fail(tmp_path / "new", DivergedError("the loss is nan"), new=True)
    assert not (tmp_path / "new").exists()
    fail(stopped, DivergedError("the loss is nan"), new=True)
    (stopped / "metrics.jsonl").unlink()
    fail(stopped, DivergedError("the loss is nan"), new=True)
    assert (stopped / "state" / "last.pt").exists()


def test_the_log_of_another_process_is_not_removed_with_the_run(tmp_path: Path, run: Run) -> None:
    RunDirectory.create(tmp_path / "run", "{}", run).close()
    (tmp_path / "run" / "error-rank1.log").write_text("KeyError")
    fail(tmp_path / "run", RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer"), new=True)
    assert (tmp_path / "run" / "error-rank1.log").exists()


def test_a_bug_leaves_its_traceback_in_the_run_directory_and_every_process_its_own(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, name in ((0, "error.log"), (3, "error-rank3.log")):
        monkeypatch.setenv("RANK", str(rank))

        def main() -> None:
            fail_in_a_run = KeyError("weights")
            with failing_cleanly(stopped, new=True):
                raise fail_in_a_run

        with pytest.raises(SystemExit):
            report_errors(main)()
        assert f"please report this with {stopped / name}, which holds the traceback" in capsys.readouterr().err
        assert "raise fail_in_a_run\nKeyError: 'weights'" in (stopped / name).read_text()
    assert (stopped / "state" / "last.pt").exists()


def test_a_log_that_finds_no_room_in_the_run_is_kept_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = KeyError("weights")
    fail(tmp_path / "file" / "run", error, new=True)
    log = Path(re.search(r"with (\S+), which", unexpected(error))[1])
    assert "KeyError: 'weights'" in log.read_text() and log.parent != tmp_path / "file" / "run"
    log.unlink()  # as that of a trial run, which ends with its folder
    assert "KeyError: 'weights'" in Path(re.search(r"with (\S+), which", unexpected(error))[1]).read_text()


@pytest.mark.parametrize("lacking", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_number_of_processes_without_torchrun_is_refused(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {"RANK", "MASTER_ADDR", "MASTER_PORT"} - {lacking}:
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv(lacking, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=f"WORLD_SIZE is 2, but {lacking} is not set: use torchrun, or unset both"):
        Run.start("cpu")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("RANK", "2"),
        ("LOCAL_RANK", "2"),
        ("WORLD_SIZE", "3"),
        ("MASTER_ADDR", ""),
        ("MASTER_PORT", ""),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="there are more processes than GPUs: pass --nproc-per-node 2 to torchrun"):
        Run.start("cuda")


@pytest.mark.parametrize("state", [{"weights": 1}, [1, 2], {"step": "two"}, {"step": None}, 7])
def test_a_state_of_something_else_is_damaged(stopped: Path, run: Run, state: object) -> None:
    torch.save(state, stopped / "state" / "last.pt")
    with pytest.raises(ValueError, match=r"last.pt is damaged, it has no step: remove it"):
        RunDirectory.reopen(stopped, run)


@pytest.mark.parametrize(
    "content",
    [
        b"no json\n",
        b"{'step': 1}\n",
        b"\xff\xfe\n",
        b'{"stop": 1}\n',
        b'{"step": "1"}\n',
        b"3\n",
        b"[]\n",
        b'{"step": 1, "loss": null, "not_finite": 3}\n',
        b'{"step": 1, "loss": NaN, "not_finite": "a"}\n',
    ],
)
def test_damaged_metrics_and_configs_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged \(.*\): remove it"):
        read_metrics(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"config\.json is not a text file"):
        read_config(tmp_path)


def test_a_process_joins_one_group_after_another(in_two_processes: Callable[[Callable[[], object]], list]) -> None:
    """As runs in one process after another do; the store of the first still holds where its processes listened."""

    def work() -> list[float]:
        sums = []
        for _ in range(5):
            run = Run.start("cpu")
            sums.append(float(run.sum(torch.ones(1))))
            run.close()
        return sums

    assert in_two_processes(work) == [[2.0] * 5] * 2
