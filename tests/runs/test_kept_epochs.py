"""Checkpoints of single epochs: named, found, and listed where one is missing."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stillroom.backbone import CheckpointError, load_backbone, load_checkpoint, weights_sha256
from stillroom.backbone.manifest import kept_epochs
from stillroom.backbone.names import refuse_missing_checkpoint


@pytest.fixture
def run_directory(small_student: Path, tmp_path: Path) -> Path:
    """A run that kept epochs 5 and 10 of one of its two students."""
    run = tmp_path / "run"
    for name in ("student-1", "student-2", "student-2@5", "student-2@10"):
        shutil.copytree(small_student, run / name)
    (run / "student-2@15").mkdir()  # no checkpoint
    return run


def test_an_epoch_is_a_checkpoint_like_any_other(run_directory: Path, small_student: Path) -> None:
    refuse_missing_checkpoint(f"{run_directory}/student-2@10")
    kept, expected = load_backbone(f"{run_directory}/student-2@10"), load_backbone(str(small_student))
    assert weights_sha256(kept.net) == weights_sha256(expected.net)


def test_kept_epochs_are_in_order_and_of_one_student(run_directory: Path) -> None:
    assert kept_epochs(run_directory / "student-2") == [5, 10]
    assert kept_epochs(run_directory / "student-1") == []


@pytest.mark.parametrize("epoch", ["7", "15", "", "last", "05"])
def test_a_missing_epoch_is_refused_with_those_that_were_kept(
    run_directory: Path, epoch: str, checkpoint_command: Callable[..., tuple[int, str, str]]
) -> None:
    name = f"{run_directory}/student-2@{epoch}"
    sentence = rf"there is no epoch '{epoch}' of .*student-2: those kept are 5, 10, named .*student-2@5 and so on"
    for load in (refuse_missing_checkpoint, load_backbone, load_checkpoint):
        with pytest.raises(CheckpointError, match=sentence):
            load(name)
    code, _, error = checkpoint_command("inspect", name)
    assert code == 2 and "those kept are 5, 10" in error


def test_a_run_that_kept_no_epoch_says_how_to_keep_them(run_directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no epoch '5' of .*student-1: none is kept without --keep-every"):
        load_backbone(f"{run_directory}/student-1@5")


def test_an_at_sign_elsewhere_means_nothing(tmp_path: Path, small_student: Path) -> None:
    folder = tmp_path / "me@work" / "net@home"
    shutil.copytree(small_student, folder)
    load_backbone(str(folder))
    with pytest.raises(ValueError, match="there is no backbone named 'no/such/net@5'"):
        load_backbone("no/such/net@5")
