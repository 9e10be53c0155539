"""Runs of version 0.4.2, stored as it wrote them: they are read, printed, and kept by the command that made them."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.backbone import build_backbone, replace_input
from stillroom.backbone.seeds import seed_everything
from stillroom.eval_ssl import Point, Recipe, evaluation, extract_features, report
from stillroom.eval_ssl.augmented_probe import state_record
from stillroom.eval_ssl.cli import main
from stillroom.eval_ssl.features import Extractor, cache_record
from stillroom.eval_ssl.protocols import PROTOCOLS
from stillroom.images import read_labelled
from stillroom.runs import Run, read_results
from stillroom.runs.configs import config_from_json
from stillroom.runs.schedule import Step

OLD = Path(__file__).parent / "fixtures" / "runs-0.4.2"
RUNS = sorted(path.name for path in OLD.iterdir() if path.is_dir())
LAST_LINES = {
    "knn": "knn: random:cifar/resnet32 is best, 100.0 % k-NN top-1, k = 5",
    "linear": "linear: random:cifar/resnet20 is best, 100.0 % linear probe top-1",
    "simreg": "simreg: random:cifar/resnet20 is best, 88.9 % linear probe top-1",
    "levels": "levels: random:cifar/resnet20 is best, 100.0 % linear probe top-1",
    "logreg": "logreg: random:cifar/resnet20 is best, 100.0 % logistic regression top-1",
    "few-shot": "few-shot: random:cifar/resnet32 is best, 100.0 % few-shot top-1, 2 images per class",
    "features": "features/random-cifar-resnet32-407efb",
}


def write_images(folder: Path, per_class: int, seed: int) -> None:
    """The images of the stored runs; the size of a BMP file depends on no library's compression."""
    generator = np.random.default_rng(seed)
    for label, class_name in enumerate(("blue", "green", "red")):
        (folder / class_name).mkdir(parents=True)
        for index in range(per_class):
            pixels = generator.integers(0, 120, (16, 16, 3), dtype=np.uint8)
            pixels[..., (2 - label) % 3] += 110
            Image.fromarray(pixels).save(folder / class_name / f"{index:03d}.bmp")


@pytest.fixture
def old_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the images and the runs."""
    write_images(tmp_path / "train", 6, seed=0)
    write_images(tmp_path / "test", 3, seed=1)
    for name in RUNS:
        shutil.copytree(OLD / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_a_run_of_every_protocol() -> None:
    tasks = {read_results(file).task for file in OLD.glob("*/*/results.json")}
    assert tasks == {*PROTOCOLS} and {*RUNS} == {*LAST_LINES}


@pytest.mark.parametrize("name", RUNS)
def test_the_old_command_keeps_the_old_run(
    old_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished run was evaluated again")

    monkeypatch.setattr(evaluation, "extract", refuse)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # tyro.MISSING stands for flags of all types
    words = shlex.split((OLD / name / "command.txt").read_text())
    monkeypatch.setattr(sys, "argv", ["stillroom-eval-ssl", *words])
    main()
    for file in OLD.glob(f"{name}/*/results.json"):
        assert (old_runs / file.relative_to(OLD)).read_bytes() == file.read_bytes()
    assert json.loads((old_runs / name / "table.json").read_text()) == json.loads(
        (OLD / name / "table.json").read_text()
    )
    assert capsys.readouterr().out.splitlines()[-1] == LAST_LINES[name]


@pytest.mark.parametrize("file", sorted(OLD.glob("*/*/results.json")), ids=lambda file: "-".join(file.parts[-3:-1]))
def test_config_and_report_of_a_single_old_run_are_read(file: Path) -> None:
    results = read_results(file)
    protocol = PROTOCOLS[results.task]
    config = config_from_json(json.dumps(results.made_by.config), protocol, evaluation.UNIONS)
    assert config.checkpoint == (results.checkpoint.path,) and config.train == Path("train")
    lines = report(file.parent).splitlines()
    assert lines[0] == results.protocol and lines[-1].startswith(str(file.parent))


def test_a_grid_of_an_old_run_is_printed_in_words() -> None:
    text = report(next(OLD.glob("levels/*resnet20*")))
    assert "| learning rate | weight decay | feature source | held-out top-1, % |" in text
    assert "chosen: learning rate 0.1, weight decay 0.0, feature source " in text


def test_caches_are_named_as_by_old_runs_but_for_how_images_are_decoded(old_runs: Path) -> None:
    """Also but for the weights and the files themselves."""
    old = json.loads((OLD / "cache_records.json").read_text())
    run = Run(device=torch.device("cpu"))
    seed_everything(0)
    net = replace_input(build_backbone("cifar/resnet32"), size=16)
    files = read_labelled(old_runs / "train")
    recipe = Recipe(epochs=2, batch_size=256, schedule=Step(every=15, gamma=0.1))
    point = Point(lr=0.01, weight_decay=1e-4, unit=True)
    extractor = Extractor(net)
    train = extract_features(net, files, run, workers=0, batch_size=8)
    records = {
        "features": cache_record(extractor, files, run, 8),
        "live": state_record(extractor, train, point, recipe, run, 8),
    }
    for kind, record in records.items():
        assert record["files"] == files.stamp
        here = {"weights", "files", "decoder", "exif"}
        assert record["exif"] == "obeyed" and record["decoder"].startswith(("simplejpeg ", "pillow "))
        new = {key: value for key, value in json.loads(json.dumps(record)).items() if key not in here}
        assert new == {key: value for key, value in old[kind].items() if key not in here}
