"""Runs that are stopped by signals, and started again by the same command."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from distill_runs import losses_of, small_config, weights_of

from stillroom.backbone.stopping import Stopped
from stillroom.distill import distill
from stillroom.runs import RunDirectory
from stillroom.runs.run_files import STATE
from stillroom.runs.states import read_state
from twins import assert_bit_equal

SMALL = {"epochs": 2, "lr": 0.02, "save_every": None, "if_exists": "resume"}


def test_the_same_command_goes_on_after_a_signal_and_ends_equal_to_the_bit(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(unlabelled, tmp_path / "whole", **SMALL)
    whole = distill(config)
    log = RunDirectory.log

    def ask_to_stop(self: RunDirectory, step: int, values: dict) -> None:
        log(self, step, values)
        if step == 4:
            os.kill(os.getpid(), signal.SIGUSR1)

    config = replace(config, out=tmp_path / "stopped")
    with monkeypatch.context() as patched, pytest.raises(Stopped, match="75"):
        patched.setattr(RunDirectory, "log", ask_to_stop)
        distill(config)
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
