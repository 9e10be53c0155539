"""`--compile` says after the first steps what it has gained."""

from pathlib import Path

import pytest
import torch
from distill_runs import losses_of, small_config

from stillroom.distill import compiling, distill, train
from stillroom.distill.compiling import CompileTrial


def test_steps_before_and_after_are_compared_by_their_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 20.0, 100.0, 105.0])
    monkeypatch.setattr(compiling.time, "perf_counter", lambda: next(clock))
    trial = CompileTrial(torch.device("cpu"))
    said = [text for step in range(1, 30) if (text := trial.read(step))]
    assert said == ["compiled: 1 s a step, 2 s without, 2.00 times as fast"]


def test_a_slower_step_advises_to_leave_it_out_and_a_resumed_run_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 20.0, 0.0, 1.0])
    monkeypatch.setattr(compiling.time, "perf_counter", lambda: next(clock))
    trial = CompileTrial(torch.device("cpu"))
    assert [text for step in range(1, 19) if (text := trial.read(step))] == [
        "compiled: 2 s a step, 1 s without, 0.50 times as fast; leave out --compile"
    ]
    assert not any(CompileTrial(torch.device("cpu")).read(step) for step in range(9, 30))


def test_the_nets_are_compiled_after_the_first_steps_whether_the_run_was_resumed_or_not(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[int] = []
    monkeypatch.setattr(train, "compiled", lambda nets: compiled.append(len(nets)) or nets)
    plain = losses_of(distill(small_config(unlabelled, tmp_path / "plain", epochs=7, batch_size=24)))
    assert compiled == []
    out = distill(small_config(unlabelled, tmp_path / "run", epochs=7, batch_size=24, compile=True))
    assert compiled == [1, 1]
    assert losses_of(out) == plain
    assert "s without" in capsys.readouterr().err
