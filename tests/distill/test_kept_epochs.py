"""`--keep-every`: the students of single epochs, kept beside the last one."""

from dataclasses import replace
from pathlib import Path

import pytest
from distill_runs import small_config, weights_of

from stillroom.backbone.manifest import kept_epochs, read_manifest
from stillroom.distill import Students, Teachers, distill, resume
from stillroom.distill.config import Monitor
from stillroom.distill.slots import LinearHead
from stillroom.runs import read_results
from stillroom.runs.run import RunDirectory
from stillroom.runs.schedule import Step
from twins import assert_bit_equal

CONSTANT = Step(every=1000)
SMALL = {
    "teacher": Teachers(name=("random:cifar/resnet20",), size=(8,)),
    "student": Students(name=("cifar/resnet20",), size=(8,)),
}


def test_a_kept_student_is_that_of_a_run_that_ended_there(unlabelled: Path, tmp_path: Path) -> None:
    config = small_config(unlabelled, tmp_path / "long", epochs=3, keep_every=1, schedule=CONSTANT, **SMALL)
    out = distill(config)
    assert kept_epochs(out / "student") == read_results(out).extra["kept_epochs"] == [1, 2, 3]
    short = distill(replace(config, out=tmp_path / "short", epochs=2))
    assert_bit_equal(weights_of(out / "student@2"), weights_of(short / "student"))
    assert_bit_equal(weights_of(short / "student@2"), weights_of(short / "student"))
    assert read_manifest(out / "student@2" / "manifest.json").notes == ("the student after epoch 2 of 3",)
    assert_bit_equal(weights_of(out / "student@3"), weights_of(out / "student"))


def test_averages_and_heads_of_every_student_are_kept(unlabelled: Path, tmp_path: Path) -> None:
    students = Students(name=("cifar/resnet20", "cifar/resnet20"), size=(16, 8))
    changes = {"head": LinearHead(), "keep_head": True, "ema": 0.5, "epochs": 1}
    out = distill(small_config(unlabelled, tmp_path / "run", student=students, keep_every=1, **changes))
    for name in ("student-1", "student-2"):
        assert_bit_equal(weights_of(out / f"{name}@1"), weights_of(out / name))
        assert (out / f"{name}@1" / "heads.safetensors").exists()


@pytest.mark.parametrize("killed_at", [4, 5])  # the last state is of step 2, before an epoch was kept, or of step 4
def test_a_resumed_run_keeps_the_students_of_an_uninterrupted_one(
    unlabelled: Path, tmp_path: Path, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(unlabelled, tmp_path / "whole", keep_every=1, save_every=2, **SMALL)
    whole = distill(config)
    log = RunDirectory.log

    def kill(self: RunDirectory, step: int, values: dict) -> None:
        if step == killed_at:
            raise KeyboardInterrupt
        log(self, step, values)

    monkeypatch.setattr(RunDirectory, "log", kill)
    with pytest.raises(KeyboardInterrupt):
        distill(replace(config, out=tmp_path / "killed"))
    monkeypatch.setattr(RunDirectory, "log", log)
    assert kept_epochs(tmp_path / "killed" / "student") == [1]
    resumed = resume(tmp_path / "killed")
    assert kept_epochs(resumed / "student") == [1, 2]
    for name in ("student@1", "student@2", "student"):
        assert_bit_equal(weights_of(resumed / name), weights_of(whole / name))


def test_keeping_epochs_changes_nothing_of_the_training(unlabelled: Path, tmp_path: Path) -> None:
    config = small_config(unlabelled, tmp_path / "kept", keep_every=1, ema=0.5, **SMALL)
    kept, plain = distill(config), distill(replace(config, out=tmp_path / "plain", keep_every=0))
    assert_bit_equal(weights_of(kept / "student"), weights_of(plain / "student"))


def test_a_run_that_stops_early_has_kept_the_epochs_until_then(unlabelled: Path, tmp_path: Path) -> None:
    monitor = Monitor(held_out=0.25, every=1, patience=1)
    changes = {"lr": 0.0, "epochs": 9, "batch_size": 24, "monitor": monitor, "keep_every": 1}
    config = small_config(unlabelled, tmp_path / "run", **changes, **SMALL)
    out = distill(config)
    steps = read_results(out).extra["steps"]
    assert steps < 9 * 3
    assert read_results(out).extra["kept_epochs"] == list(range(1, steps // 3 + 1))


@pytest.mark.parametrize(
    ("keep_every", "sentence"),
    [(3, r"--keep-every is 3: of 2 epochs none would be kept"), (-1, r"--keep-every is -1: it must be at least 0")],
)
def test_epochs_that_cannot_be_kept_are_refused_before_there_is_a_run(
    unlabelled: Path, tmp_path: Path, keep_every: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        distill(small_config(unlabelled, tmp_path / "run", keep_every=keep_every))
    assert not (tmp_path / "run").exists()
