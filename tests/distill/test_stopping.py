"""Runs that are stopped by signals, and started again by the same command."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from distill_runs import losses_of, small_config, weights_of

from stillroom.backbone.stopping import Stopped
from stillroom.distill import distill, train
from stillroom.distill.config import DistillConfig
from stillroom.runs import RunDirectory
from stillroom.runs.results import RESULTS
from stillroom.runs.run_files import STATE
from stillroom.runs.states import read_state
from twins import assert_bit_equal

SMALL = {"epochs": 2, "lr": 0.02, "save_every": None, "if_exists": "resume"}


def stop_after(step: int, config: DistillConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a run by a signal after a step."""
    log = RunDirectory.log

    def ask_to_stop(self: RunDirectory, now: int, values: dict) -> None:
        log(self, now, values)
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(Stopped, match="75"):
        patched.setattr(RunDirectory, "log", ask_to_stop)
        distill(config)


def test_the_same_command_goes_on_after_a_signal_and_ends_equal_to_the_bit(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(unlabelled, tmp_path / "whole", **SMALL)
    whole = distill(config)
    config = replace(config, out=tmp_path / "stopped")
    stop_after(4, config, monkeypatch)
    assert read_state(config.out / STATE)["step"] == 4
    assert distill(config) == config.out
    assert_bit_equal(weights_of(whole / "student"), weights_of(config.out / "student"))
    assert losses_of(whole) == losses_of(config.out)
    written = (config.out / "results.json").stat().st_mtime_ns
    distill(config)  # finished: kept
    assert (config.out / "results.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"is a run with other settings \(lr\): choose another --out"):
        distill(replace(config, lr=0.5))
    with pytest.raises(ValueError, match=r"stopped exists: choose another --out, or resume it with `resume "):
        distill(replace(config, if_exists="refuse"))


def test_a_folder_that_is_no_run_is_never_resumed_nor_removed(unlabelled: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("")
    with pytest.raises(ValueError, match="mine exists: choose another --out"):
        distill(small_config(unlabelled, tmp_path / "mine", **SMALL))
    assert (tmp_path / "mine" / "precious.txt").exists()


def test_an_image_that_only_one_process_reads_ends_both_with_its_name(
    unlabelled: Path, tmp_path: Path, in_two_processes: Callable[[Callable[[], object]], list]
) -> None:
    from stillroom.distill.config import Monitor
    from stillroom.distill.slots import LinearHead, Raw

    broken = sorted(unlabelled.iterdir())[17]
    broken.write_bytes(broken.read_bytes()[:60])
    changes = {"alignment": Raw(), "head": LinearHead(), "monitor": Monitor(held_out=0.0), "epochs": 1}
    config = small_config(unlabelled, tmp_path / "run", **changes)

    def work() -> str:
        try:
            distill(config)
        except ValueError as error:
            return str(error)
        return "went on"

    texts = in_two_processes(work)
    reader = 0 if len(texts[0]) < len(texts[1]) else 1
    assert broken.name in texts[reader]
    assert texts[1 - reader] == f"process {reader} of the run has failed: {texts[reader]}"


def test_a_run_that_another_process_finished_meanwhile_is_kept(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(unlabelled, tmp_path / "run", **SMALL)
    stop_after(4, config, monkeypatch)
    build, finished = train.build_setup, []

    def build_while_another_finishes(*arguments: object, **named: object) -> object:
        monkeypatch.setattr(train, "build_setup", build)
        setup = build(*arguments, **named)
        distill(config)
        finished.append((config.out / RESULTS).stat().st_mtime_ns)
        return setup

    monkeypatch.setattr(train, "build_setup", build_while_another_finishes)
    distill(config)
    assert finished == [(config.out / RESULTS).stat().st_mtime_ns]


def test_the_command_that_resumes_says_how_often_states_are_saved(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(unlabelled, tmp_path / "run", **SMALL)
    stop_after(3, config, monkeypatch)
    saved, save = [], RunDirectory.save_state
    monkeypatch.setattr(
        RunDirectory, "save_state", lambda self, state: saved.append(state["step"]) or save(self, state)
    )
    distill(replace(config, save_every=2))
    assert saved == [4, 6]
