"""Features as files."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from stillroom.backbone import build_backbone, replace_input
from stillroom.backbone.seeds import seed_everything
from stillroom.eval_ssl import FeaturesConfig, FeatureSet, evaluate, extract_features, report
from stillroom.images import read_labelled, read_unlabelled
from stillroom.runs import Run, read_results

Make = Callable[..., Path]


def config_of(folder: Path, out: Path, **changes) -> FeaturesConfig:
    settings = {"checkpoint": ("random:cifar/resnet20",), "train": folder, "out": out, "size": 16, "workers": 0}
    return FeaturesConfig(**(settings | {"device": "cpu"} | changes))


def found(folder: Path, run: Run, labelled: bool = True) -> FeatureSet:
    seed_everything(0)
    backbone = replace_input(build_backbone("cifar/resnet20"), size=16)
    files = read_labelled(folder) if labelled else read_unlabelled(folder)
    return extract_features(backbone, files, run, workers=0)


@pytest.mark.parametrize("file_format", ["npy", "safetensors", "parquet"])
def test_files_hold_features_paths_and_labels_in_one_order(
    labelled: Make, tmp_path: Path, run: Run, file_format: str
) -> None:
    folder, other = labelled("train", per_class=3), labelled("test", per_class=2, seed=1)
    out = evaluate(config_of(folder, tmp_path / "out", test=other, format=file_format))
    expected = found(folder, run)
    if file_format == "parquet":
        table = pyarrow.parquet.read_table(out / "train.parquet").to_pydict()
        features = np.array(table["feature"], dtype=np.float32)
        rows = list(zip(table["path"], table["label"], table["class"], strict=True))
    else:
        features = (
            np.load(out / "train.npy")
            if file_format == "npy"
            else load_file(out / "train.safetensors")["features"].numpy()
        )
        with (out / "train.csv").open() as opened:
            table = list(csv.DictReader(opened))
        rows = [(row["path"], int(row["label"]), row["class"]) for row in table]
        assert [int(row["row"]) for row in table] == list(range(9))
    assert np.array_equal(features, expected.features.numpy())
    names = expected.files.classes
    assert rows == [
        (str(path), label, names[label])
        for path, label in zip(expected.files.paths, expected.labels.tolist(), strict=True)
    ]
    if file_format == "safetensors":
        assert torch.equal(load_file(out / "train.safetensors")["labels"], expected.labels)
    results = read_results(out)
    assert results.protocol == "features/v1 feature=after size=16 crop=1 resize=short-side dtype=float32"
    assert results.extra["files"] == {f"train.{file_format}": [9, 64], f"test.{file_format}": [6, 64]}
    assert f"{out / 'test'}.{file_format}: 6 x 64 float32" in report(out)


def test_images_without_labels_are_exported_too(unlabelled: Path, tmp_path: Path, run: Run) -> None:
    out = evaluate(config_of(unlabelled, tmp_path / "out", labels=False))
    assert np.array_equal(np.load(out / "train.npy"), found(unlabelled, run, labelled=False).features.numpy())
    with (out / "train.csv").open() as opened:
        assert {(row["label"], row["class"]) for row in csv.DictReader(opened)} == {("-1", "")}
    assert not (out / "test.npy").exists()


def test_one_class_is_enough_where_nothing_is_told_apart(labelled: Make, tmp_path: Path) -> None:
    out = evaluate(config_of(labelled("train", per_class=3, classes=("blue",)), tmp_path / "out"))
    assert np.load(out / "train.npy").shape == (3, 64)


def test_parquet_without_pyarrow_is_one_sentence_before_any_pass(
    labelled: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(
        ValueError, match=r"--format parquet needs pyarrow: pip install 'stillroom-eval-ssl\[parquet\]'"
    ):
        evaluate(config_of(labelled("train", per_class=2), tmp_path / "out", format="parquet"))
    assert capsys.readouterr().err == "" and not (tmp_path / "out").exists()
