"""Shared nearest neighbours, worked by hand."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from neighbours import Settings, compare, share_of


def write_run(folder: Path, features: np.ndarray, pictures: list[Path]) -> Path:
    """What `eval_ssl.py features` leaves."""
    folder.mkdir()
    np.save(folder / "train.npy", features.astype(np.float32))
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["row", "path", "label", "class"])
        writer.writerows([row, picture, -1, ""] for row, picture in enumerate(pictures))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    for place in range(12):
        Image.new("RGB", (20, 20), (20 * place, 0, 0)).save(tmp_path / f"{place}.png")
    return [tmp_path / f"{place}.png" for place in range(12)]


def test_a_share_counts_neighbours_in_any_order() -> None:
    ours, theirs = torch.tensor([[1, 2, 3], [0, 2, 4]]), torch.tensor([[3, 1, 5], [5, 6, 7]])
    assert share_of(ours, theirs) == pytest.approx(2 / 6)
    assert share_of(ours, ours.flip(1)) == 1


def test_nets_share_all_of_their_own_neighbours_and_those_that_geometry_says(
    tmp_path: Path, pictures: list[Path]
) -> None:
    angles = np.linspace(0, 1.1, 12)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    teacher = write_run(tmp_path / "teacher", circle, pictures)
    twice = write_run(tmp_path / "twice", 2 * circle, pictures)  # the cosine knows no length
    swapped = write_run(tmp_path / "swapped", circle[np.r_[6:12, 0:6]], pictures)  # two halves change places
    nets, out = (twice, swapped), tmp_path / "alike"
    shares = compare(Settings(teacher=teacher, nets=nets, out=out, k=1))
    assert shares[str(twice)] == 1
    assert shares["chance"] == pytest.approx(1 / 11)
    assert json.loads((out / "shared.json").read_text()) == {"k": 1, "pictures": 12, "shares": shares}
    assert {file.name for file in out.iterdir()} == {
        "shared.json", "neighbours.png", "map-teacher.png", "map-student.png"
    }  # fmt: skip
    near = {place: {place - 1, place + 1} & set(range(12)) for place in range(12)}
    inner = [place for place in range(12) if place not in (0, 5, 6, 11)]  # neighbours on both sides, before and after
    assert all(near[place] == {place - 1, place + 1} for place in inner)
    assert 0 < shares[str(swapped)] < 1


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, pictures: list[Path]) -> None:
    features = np.eye(12)
    teacher = write_run(tmp_path / "teacher", features, pictures)
    other = write_run(tmp_path / "other", features, pictures[::-1])
    with pytest.raises(ValueError, match=r"other is of other pictures than .*teacher: extract both from the same ones"):
        compare(Settings(teacher=teacher, nets=(other,), out=tmp_path / "out", k=2))
    with pytest.raises(ValueError, match="teacher has 12 pictures: 12 neighbours need more"):
        compare(Settings(teacher=teacher, nets=(teacher,), out=tmp_path / "out", k=12))
    with pytest.raises(ValueError, match=r"holds no train\.npy: give a run of `eval_ssl\.py features`"):
        compare(Settings(teacher=tmp_path, nets=(teacher,), out=tmp_path / "out"))
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out exists: choose another --out"):
        compare(Settings(teacher=teacher, nets=(teacher,), out=tmp_path / "out"))
