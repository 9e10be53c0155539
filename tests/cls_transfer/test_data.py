"""The images to train on, to select weights by, and to test on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stillroom.cls_transfer import ClassifyConfig
from stillroom.cls_transfer.data import read_sets
from stillroom.runs import Run

Make = Callable[..., Path]


def config_of(train: Path, test: Path, **changes) -> ClassifyConfig:
    return ClassifyConfig(checkpoint=("random:cifar/resnet20",), train=train, test=test, out=Path("run"), **changes)


@pytest.fixture
def folders(labelled: Make) -> tuple[Path, Path]:
    return labelled("train", per_class=20), labelled("test", per_class=2, seed=1)


def counts(labels: tuple[int, ...] | None) -> list[int]:
    return torch.tensor(labels).bincount().tolist()


def test_a_tenth_of_each_class_is_held_out_and_never_trained_on(folders: tuple[Path, Path], run: Run) -> None:
    sets = read_sets(config_of(*folders), run)
    assert sets.val is not None and counts(sets.train.labels) == [18] * 3 and counts(sets.val.labels) == [2] * 3
    assert not set(sets.train.paths) & set(sets.val.paths)
    assert len({*sets.train.paths, *sets.val.paths}) == 60 and len(sets.test) == 6
    assert sets.words == "held-out=0.1"
    other = read_sets(config_of(*folders, seeds=(1,)), run)
    assert other.val is not None and set(other.val.paths) != set(sets.val.paths)


def test_training_images_are_cut_before_any_is_held_out(folders: tuple[Path, Path], run: Run) -> None:
    half, tenth = (read_sets(config_of(*folders, fraction=share, held_out=0.0), run) for share in (0.5, 0.1))
    assert counts(half.train.labels) == [10] * 3 and counts(tenth.train.labels) == [2] * 3
    assert set(tenth.train.paths) < set(half.train.paths) and half.val is None
    assert (half.words, tenth.words) == ("fraction=0.5", "fraction=0.1")
    few = read_sets(config_of(*folders, shots=4), run)
    assert few.val is not None and counts(few.train.labels) == [3] * 3 and counts(few.val.labels) == [1] * 3
    assert few.words == "shots=4 held-out=0.1"


def test_weights_may_be_selected_by_another_folder_or_by_the_test_itself(
    folders: tuple[Path, Path], labelled: Make, run: Run
) -> None:
    val = labelled("val", per_class=3, seed=2)
    given = read_sets(config_of(*folders, val=val), run)
    assert given.val is not None and len(given.val) == 9 and len(given.train) == 60 and given.words == "val"
    legacy = read_sets(config_of(*folders, choose="best-on-test", held_out=0.0), run)
    assert legacy.val is not None and legacy.val.paths == legacy.test.paths and len(legacy.train) == 60


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"fraction": 0.0}, r"--fraction is 0\.0: it must lie in"),
        ({"shots": 21}, "class blue has 20 images, --shots is 21"),
        ({"shots": 2, "fraction": 0.5}, "--fraction and --shots both limit the training images: pass one"),
        (
            {"shots": 1},
            "class blue has one training image, so none can be held out: pass --held-out 0, or --val",
        ),
        ({"train": None}, "pass --train and --test, or --tasks and --data"),
        ({"tasks": ("dtd",), "train": None, "test": None}, "--tasks dtd needs --data"),
        ({"tasks": ("dtd",)}, "--tasks dtd has images of its own"),
    ],
)
def test_parts_that_cannot_be_are_one_sentence(folders: tuple[Path, Path], run: Run, changes: dict, text: str) -> None:
    settings = {"train": folders[0], "test": folders[1]} | changes
    with pytest.raises(ValueError, match=text):
        read_sets(ClassifyConfig(checkpoint=("random:cifar/resnet20",), out=Path("run"), **settings), run)


@pytest.mark.parametrize("part", [{"fraction": 0.5}, {"shots": 10}])
def test_parts_are_drawn_by_the_seed(folders: tuple[Path, Path], run: Run, part: dict) -> None:
    one, again, other = (
        set(read_sets(config_of(*folders, seeds=(seed,), held_out=0.0, **part), run).train.paths) for seed in (0, 0, 1)
    )
    assert one == again != other and len(one) == len(other) == 30
