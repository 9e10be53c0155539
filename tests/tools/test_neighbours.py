"""Comparison of students with their teacher by nearest neighbours, without labels."""

import csv
import json
import runpy
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.distill.agreement import neighbour_agreement
from stillroom.eval_ssl.evaluation import evaluate
from stillroom.eval_ssl.protocols.features import FeaturesConfig
from stillroom.images.labels import Columns

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from neighbour_sheet import compare
from neighbours import Settings, agreement_text, check
from pack import Pack


def write_run(folder: Path, features: np.ndarray, images: list[Path]) -> Path:
    """Write the files of `eval_ssl.py features`."""
    folder.mkdir()
    np.save(folder / "train.npy", features.astype(np.float32))
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["row", "path", "label", "class"])
        writer.writerows([row, image, -1, ""] for row, image in enumerate(images))
    return folder


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    for index in range(12):
        Image.new("RGB", (20, 20), (20 * index, 0, 0)).save(tmp_path / f"{index}.png")
    return [tmp_path / f"{index}.png" for index in range(12)]


def test_agreement_is_that_of_the_package_and_ignores_vector_lengths(tmp_path: Path, images: list[Path]) -> None:
    angles = np.linspace(0, 1.1, 12)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    half_swapped = circle[np.r_[6:12, 0:6]]
    teacher = write_run(tmp_path / "teacher", circle, images)
    twice = write_run(tmp_path / "twice", 2 * circle, images)
    swapped = write_run(tmp_path / "swapped", half_swapped, images)
    out = tmp_path / "compared"
    agreement = compare(teacher, (twice, swapped), out, k=2, seed=0)
    of_swapped = neighbour_agreement(*(torch.from_numpy(one.astype(np.float32)) for one in (half_swapped, circle)), 2)
    assert agreement == {str(twice): 1, str(swapped): of_swapped} and 0 < of_swapped < 1
    assert json.loads((out / "agreement.json").read_text()) == {"k": 2, "images": 12, "agreement": agreement}
    assert {file.name for file in out.iterdir()} == {
        "agreement.json",
        "neighbours.png",
        "map-teacher.png",
        "map-student.png",
    }


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, images: list[Path]) -> None:
    features = np.eye(12)
    teacher = write_run(tmp_path / "teacher", features, images)
    other = write_run(tmp_path / "other", features, images[::-1])
    with pytest.raises(ValueError, match=r"other and .*teacher have different images: extract both from the same ones"):
        compare(teacher, (other,), tmp_path / "out", k=2, seed=0)
    with pytest.raises(ValueError, match="teacher has 12 images: --k 6 needs more than 12"):
        compare(teacher, (teacher,), tmp_path / "out", k=6, seed=0)
    with pytest.raises(ValueError, match=r"has no train\.npy: pass a run of `eval_ssl\.py features`"):
        check(Settings(teacher=tmp_path, nets=(teacher,), out=tmp_path / "out"))
    for flag, low in (("k", 1), ("seed", 0)):
        with pytest.raises(ValueError, match=f"--{flag} is {low - 1}: it must be at least {low}"):
            check(Settings(teacher=teacher, nets=(teacher,), out=tmp_path / "out", **{flag: low - 1}))
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out exists: choose another --out"):
        check(Settings(teacher=teacher, nets=(teacher,), out=tmp_path / "out"))


def test_features_of_archives_and_data_sets_are_shown_too(tmp_path: Path, images: list[Path]) -> None:
    """The sheet is that of the same images in a folder."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "images"
    folder.mkdir()
    for image in images:
        image.rename(folder / image.name)
    Pack(data=folder, out=tmp_path / "shards", labels=False).run()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    rows = datasets.Dataset.from_dict({"picture": [str(file) for file in sorted(folder.iterdir())]})
    rows.cast_column("picture", datasets.Image()).save_to_disk(str(tmp_path / "saved"))
    sheets = []
    for source in ("images", "shards", "images.zip", "saved"):
        run = tmp_path / f"features-{source}"
        evaluate(
            FeaturesConfig(
                checkpoint=("random:cifar/resnet20",),
                train=tmp_path / source,
                out=run,
                labels=False,
                size=16,
                columns=Columns(image="picture"),
            )
        )
        compare(run, (run,), tmp_path / f"compared-{source}", k=2, seed=0)
        sheets.append((tmp_path / f"compared-{source}" / "neighbours.png").read_bytes())
    assert len(sheets) == 4 and sheets.count(sheets[0]) == 4
    (tmp_path / "images.zip").unlink()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(folder / "0.png", "0.png")
    gone = tmp_path / "features-images.zip"
    with pytest.raises(ValueError, match=r"images\.zip does not hold .*images\.zip/1\.png of .* any more: extract the"):
        compare(gone, (gone,), tmp_path / "compared", k=2, seed=0)


def test_an_agreement_at_chance_or_below_is_called_no_better_than_chance() -> None:
    assert [agreement_text(value) for value in (1, 0.0625)] == ["100.0", "6.2"]
    assert [agreement_text(value) for value in (0, -0.094)] == ["0.0 (no better than chance)"] * 2
    assert [agreement_text(value, " %") for value in (0.5, -0.094)] == ["50.0 %", "0.0 % (no better than chance)"]


def test_the_command_prints_no_negative_agreement(
    tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    angles = np.linspace(0, 1.1, 12)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    teacher = write_run(tmp_path / "teacher", circle, images)
    student = write_run(tmp_path / "student", circle[[0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]], images)
    words = ["--teacher", teacher, "--nets", student, "--k", "1", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["neighbours.py", *map(str, words)])
    runpy.run_path(str(Path(__file__).parents[2] / "tools" / "neighbours.py"), run_name="__main__")
    assert json.loads((tmp_path / "out" / "agreement.json").read_text())["agreement"][str(student)] < 0
    assert "0.0 (no better than chance)" in capsys.readouterr().out
