"""Runs of version 0.3.0, stored as it left them: its configs are read, and its stopped run is resumed.

`fixtures/stopped_0_3` is a run of six steps, stopped after the fourth, with its state at the third; `presets_0_3.json`
holds the config of every preset. Both were written by version 0.3.0.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stillroom.backbone import build_backbone, save_checkpoint
from stillroom.distill import DistillConfig, resume
from stillroom.distill.config import UNIONS
from stillroom.distill.presets import PRESETS
from stillroom.distill.slots import LinearHead, Svd, WeakView
from stillroom.runs import read_results
from stillroom.runs.configs import config_from_json, load_config
from stillroom.runs.run_files import read_metrics

FIXTURES = Path(__file__).parent / "fixtures"
OLD_PRESETS = json.loads((FIXTURES / "presets_0_3.json").read_text())


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stopped run, in a folder with its images and its initial student."""
    monkeypatch.chdir(tmp_path)  # the paths in its config.json are relative
    shutil.copytree(FIXTURES / "stopped_0_3", "run")
    Path("images").mkdir()
    generator = np.random.default_rng(0)
    for index in range(24):
        pixels = generator.integers(0, 256, 16 * 16 * 3, dtype=np.uint8).tobytes()
        Path(f"images/{index:02d}.ppm").write_bytes(b"P6 16 16 255\n" + pixels)
    torch.manual_seed(0)
    student = build_backbone("timm/convnext_atto", arguments={"depths": [1, 1, 1, 1], "dims": [4, 4, 8, 8]})
    save_checkpoint(Path("initial"), student, method="random", package="test")
    return Path("run")


def test_a_stopped_run_of_0_3_is_resumed_to_the_numbers_of_its_version(stopped: Path) -> None:
    results = read_results(resume(stopped))
    assert results.extra["steps"] == 6
    assert results.extra["best"] == {"score": pytest.approx(-0.1667, abs=1e-4), "step": 2, "stale": 2}
    # what 0.3.0 measured of the same run without a stop
    assert results.metrics["loss"] == pytest.approx(5.754314, rel=1e-3)
    assert results.metrics["held_out_loss"] == pytest.approx(1.530663, rel=1e-3)
    assert [row["step"] for row in read_metrics(stopped) if "loss" in row] == [1, 2, 3, 4, 5, 6]


def test_the_config_of_a_run_of_0_3_is_read(stopped: Path) -> None:
    config = load_config(stopped, DistillConfig, UNIONS)
    assert (config.view, config.alignment, config.head) == (WeakView(), Svd(dim=8), LinearHead())
    assert config.student.nets()[0].size == 32


@pytest.mark.parametrize("name", OLD_PRESETS)
def test_every_kind_that_0_3_wrote_is_read_and_means_the_same(name: str) -> None:
    config = config_from_json(json.dumps(OLD_PRESETS[name]), DistillConfig, UNIONS)
    now = PRESETS[name](teacher=("t",), student=("s",), data=Path("d"), out=Path("o"))
    then = {"amp": "none", "workers": 1, "save_every": OLD_PRESETS[name]["save_every"]}  # not the defaults of today
    assert config == replace(now, **then, order=1), "an older run keeps its order of the images"
    assert now.order == 2
