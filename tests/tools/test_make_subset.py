"""Seeded parts of image folders."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stillroom.images import read_labelled, read_unlabelled

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from make_subset import Subset, select_images


@pytest.fixture
def folder(labelled: Callable[..., Path]) -> Path:
    return labelled("train", per_class=10, classes=("a", "b", "c", "d"))


def test_per_class_selects_that_many_of_each_class_and_repeats_with_the_seed(folder: Path, tmp_path: Path) -> None:
    parts = [select_images(Subset(data=folder, out=tmp_path / "x", per_class=3, seed=seed)) for seed in (0, 0, 1)]
    assert np.bincount(parts[0].labels).tolist() == [3, 3, 3, 3]
    assert parts[0].fingerprint == parts[1].fingerprint != parts[2].fingerprint


def test_a_fraction_is_the_same_share_of_each_class(folder: Path, tmp_path: Path, unlabelled: Path) -> None:
    assert np.bincount(select_images(Subset(data=folder, out=tmp_path / "x", fraction=0.2)).labels).tolist() == [
        2,
        2,
        2,
        2,
    ]
    assert len(select_images(Subset(data=unlabelled, out=tmp_path / "x", fraction=0.25))) == 24


def test_classes_are_selected_by_simregs_rule(folder: Path, tmp_path: Path) -> None:
    part = select_images(Subset(data=folder, out=tmp_path / "x", classes=2))
    np.random.seed(1234)  # the rule, as SimReg states it
    expected = set(np.random.permutation(["a", "b", "c", "d"])[:2])
    assert {part.classes[label] for label in part.labels} == expected and len(part) == 20


def test_a_list_and_a_folder_of_links_hold_the_same_images(folder: Path, tmp_path: Path) -> None:
    part = select_images(Subset(data=folder, out=tmp_path / "x", per_class=2))
    Subset(data=folder, out=tmp_path / "lists" / "part.txt", per_class=2).run()
    Subset(data=folder, out=tmp_path / "links", per_class=2).run()
    listed = read_unlabelled(tmp_path / "lists" / "part.txt")
    assert [path.resolve() for path in listed.paths] == [path.resolve() for path in part.paths]
    linked = read_labelled(tmp_path / "links")
    assert linked.fingerprint == part.fingerprint == listed.fingerprint
    assert f"# fingerprint {part.fingerprint}" in (tmp_path / "lists" / "part.txt").read_text()


def test_the_printed_fingerprint_is_that_of_the_list_even_if_all_images_share_a_subfolder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "one.txt"
    Subset(data=folder, out=out, classes=1).run()
    assert f"10 images, fingerprint {read_unlabelled(out).fingerprint}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "pass --per-class N or --fraction F"),
        ({"per_class": 2, "fraction": 0.5}, "pass --per-class N or --fraction F"),
        ({"fraction": 1.5}, r"--fraction is 1\.5"),
        ({"per_class": 11}, "--per-class is 11, class a has 10 images"),
        ({"classes": 9}, "--classes is 9, .* has 4 classes"),
        ({"fraction": 0.5, "seed": -1}, "--seed is -1: it must be at least 0"),
    ],
)
def test_settings_that_cannot_work_end_in_one_sentence(
    folder: Path, tmp_path: Path, settings: dict, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Subset(data=folder, out=tmp_path / "x.txt", **settings).run()
    assert not (tmp_path / "x.txt").exists()


def test_an_existing_list_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match="exists: choose another --out"):
        Subset(data=folder, out=tmp_path / "x.txt", per_class=1).run()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "lists no images"),
        ("# only a comment\n", "lists no images"),
        ("absent.png\n", "lists 1 files that do not exist"),
    ],
)
def test_a_list_without_images_ends_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_unlabelled(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(ValueError, match="is not a list of images"):
        read_unlabelled(tmp_path / "list.txt")
