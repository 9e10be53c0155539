"""Classifying unlabelled images."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from stillroom.backbone import Normalize, build_backbone, save_checkpoint
from stillroom.cls_transfer import ClassifyConfig, finetune, load_classifier, predict
from stillroom.images import EvaluationView

Make = Callable[..., Path]


@pytest.fixture
def tuned(labelled: Make, tmp_path: Path) -> Path:
    """The checkpoint of a classifier of three colours, with a hidden layer."""
    train = labelled("train", per_class=12)
    config = ClassifyConfig(
        checkpoint=("random:cifar/resnet20",),
        train=train,
        test=train,
        out=tmp_path / "run",
        size=16,
        epochs=4,
        batch_size=12,
        lrs=(0.05,),
        held_out=0.0,
        hidden=(16,),
        min_scale=0.5,
        workers=0,
        device="cpu",
    )
    return finetune(config) / "checkpoint"


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open() as opened:
        return list(csv.DictReader(opened))


def test_every_image_gets_its_likeliest_classes(tuned: Path, labelled: Make, tmp_path: Path) -> None:
    images = labelled("new", per_class=4, seed=5)
    out = predict(tuned, images, tmp_path / "answers.csv", top=2, workers=0, device="cpu")
    rows = rows_of(out)
    assert [row["path"] for row in rows] == [str(path) for path in sorted(images.glob("*/*"))]
    model, classes = load_classifier(tuned)
    model.eval()
    spec = model.backbone.spec.input
    for row in rows:
        view = Normalize(spec)(EvaluationView(spec)(Image.open(row["path"]))[None])
        with torch.no_grad():
            shares, places = model(view).softmax(dim=1)[0].topk(2)
        assert [row["class_1"], row["class_2"]] == [classes[i] for i in places.tolist()]
        assert [float(row["probability_1"]), float(row["probability_2"])] == pytest.approx(shares.tolist(), abs=1e-4)
    right = sum(row["class_1"] == Path(row["path"]).parent.name for row in rows)
    assert right >= 10  # of 12; chance is 4


def test_one_image_and_a_list_are_enough(tuned: Path, labelled: Make, tmp_path: Path) -> None:
    images = sorted(labelled("new", per_class=2, seed=5).glob("*/*"))
    one = predict(tuned, images[0], tmp_path / "one.csv", workers=0, device="cpu")
    assert [row["path"] for row in rows_of(one)] == [str(images[0])]
    (tmp_path / "list.txt").write_text("\n".join(str(path) for path in images[:3]))
    some = predict(tuned, tmp_path / "list.txt", tmp_path / "some.csv", workers=0, device="cpu")
    assert len(rows_of(some)) == 3


def test_a_broken_image_is_left_out_by_name(
    tuned: Path, labelled: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = labelled("new", per_class=2)
    (images / "red" / "000.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"red/000\.png cannot be read as an image"):
        predict(tuned, images, tmp_path / "a.csv", workers=0, device="cpu")
    assert not (tmp_path / "a.csv").exists()
    out = predict(tuned, images, tmp_path / "a.csv", workers=0, device="cpu", on_broken="skip")
    assert len(rows_of(out)) == 5 and "red/000.png" in capsys.readouterr().err


def test_what_cannot_be_is_one_sentence(tuned: Path, labelled: Make, tmp_path: Path) -> None:
    images = labelled("new", per_class=1)
    with pytest.raises(ValueError, match=r"--top is 4: .* predicts 3 classes"):
        predict(tuned, images, tmp_path / "a.csv", top=4)
    with pytest.raises(ValueError, match=r"--workers is -1: it must be at least 0"):
        predict(tuned, images, tmp_path / "a.csv", workers=-1)
    manifest = json.loads((tuned / "manifest.json").read_text())
    manifest["heads"]["classifier"]["classes"].pop()
    shutil.copytree(tuned, tmp_path / "renamed")
    (tmp_path / "renamed" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"the classifier of .*renamed has 3 outputs and 2 class names"):
        predict(tmp_path / "renamed", images, tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"b\.csv exists: choose another --out"):
        predict(tuned, images, tmp_path / "b.csv")
    save_checkpoint(tmp_path / "bare", build_backbone("cifar/resnet20"), method="random", package="test")
    with pytest.raises(ValueError, match="classifier"):
        predict(tmp_path / "bare", images, tmp_path / "a.csv")
