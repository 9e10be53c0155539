"""tools/chaos.py in short: a few faults to a few runs, and faults of its own that it must see."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from chaos import Chaos, chaos, share
from chaos_faults import Bench, Row, by_signals, litter, living


@pytest.mark.slow
def test_runs_that_are_killed_stopped_and_starved_end_equal_to_their_twins(tmp_path: Path) -> None:
    settings = Chaos(out=tmp_path / "out", trainers=("distill",), kills=2, terms=1, torchrun_kills=0, full=1)
    rows = chaos(settings)
    assert [sentence for row in rows for sentence in row.wrong] == []
    assert [row.faults for row in rows if row.fault.startswith("SIG")] == [2, 1]
    stored = json.loads((tmp_path / "out" / "chaos.json").read_text())["rows"]
    assert [row["trainer"] for row in stored] == ["distill"] * 3


def work(config: SimpleNamespace) -> None:
    """A run of half a second, in place of a trainer's, that resumes where it was killed: it writes ten lines."""
    config.out.mkdir(exist_ok=True)
    file = config.out / "lines.txt"
    for step in range(len(file.read_text()) if file.exists() else 0, 10):
        time.sleep(0.05)
        file.write_text("x" * (step + 1))


def bench_of(tmp_path: Path, run: object) -> Bench:
    """A bench with a trainer of our own and its twin."""
    trainer = SimpleNamespace(
        config=lambda data, out: SimpleNamespace(out=out),
        run=run,
        outcome=lambda out: ({}, {"lines": (out / "lines.txt").read_text()}),
    )

    def when_it_runs(_: float, __: float) -> float:
        """The time of a signal: now, once a run has begun that is not the twin."""
        while not list(tmp_path.glob("SIG*/lines.txt")):
            time.sleep(0.01)
        return 0.0

    rng: Any = SimpleNamespace(uniform=when_it_runs)
    bench = Bench(name="planted", trainer=trainer, data=tmp_path, folder=tmp_path, rng=rng)  # type: ignore[arg-type]
    bench.start(tmp_path / "twin").join()
    return bench


def test_a_run_that_resumes_passes_whatever_kills_it(tmp_path: Path) -> None:
    row = by_signals(bench_of(tmp_path, work), signal.SIGKILL, 3, seconds=0.0)
    assert (row.faults, row.runs, row.wrong) == (3, 1, [])


def test_a_run_that_ends_otherwise_than_its_twin_is_seen(tmp_path: Path) -> None:
    def forget(config: SimpleNamespace) -> None:
        work(config)
        if config.out.name != "twin":
            (config.out / "lines.txt").write_text("x" * 9 + "y")

    row = by_signals(bench_of(tmp_path, forget), signal.SIGKILL, 1, seconds=0.0)
    assert row.wrong == ["SIGKILL-0 differs from its twin in its lines"]


def test_orphans_litter_and_wrong_exit_codes_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chaos_faults.ORPHANS_END", 0.5)

    def leave(config: SimpleNamespace) -> None:
        if config.out.name != "twin":
            if os.fork() == 0:
                time.sleep(300)
                os._exit(0)
            (config.out.parent / f".{config.out.name}.claim").write_text("")
            signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
        work(config)

    bench = bench_of(tmp_path, leave)
    row = by_signals(bench, signal.SIGTERM, 1, seconds=0.0)
    assert row.wrong[0] == "SIGTERM-0 ended with exit code 3 after SIGTERM"
    assert row.wrong[1] == "SIGTERM-0 left .SIGTERM-0.claim"
    assert ["has orphans" in sentence for sentence in row.wrong[2:]] == [
        True,
        True,
    ]  # of the finished run and the other
    assert litter(tmp_path / "twin") == [] and not living(999_999_999)


def test_faults_are_spread_over_the_trainers() -> None:
    assert [share(10, index, 4) for index in range(4)] == [3, 3, 2, 2]
    assert Row(trainer="a", fault="b").wrong == []
