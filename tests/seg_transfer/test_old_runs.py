"""Runs that earlier versions began: their settings and MMEngine configs are still read."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATA_SAMPLERS, DATASETS, HOOKS
from pairs import CLASSES, write_pair

from stillroom.backbone import build_backbone
from stillroom.runs import Run
from stillroom.runs.configs import load_config
from stillroom.seg_transfer import SegmentConfig
from stillroom.seg_transfer.reproducible import SeededDataset, SeededSampler, SeededSteps
from stillroom.seg_transfer.train import build_plan, build_runner, initial_file

FIXTURE = Path(__file__).parent / "fixtures" / "run-0.2"
OLD = {"SteadySampler": SeededSampler, "SteadyDataset": SeededDataset, "SteadySteps": SeededSteps}


@pytest.fixture
def in_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder in which the stored run began: data/ and run/."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for number in range(count):
            write_pair(Path("data"), part, f"{number:02d}", rng)
    (Path("data") / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    Path("run").mkdir()


def test_the_settings_of_an_old_run_are_read(make_config: Callable[..., SegmentConfig]) -> None:
    config = load_config(FIXTURE, SegmentConfig)
    assert config == make_config(out=FIXTURE, data=Path("data"), steps=2)


def test_a_config_of_an_old_run_builds_and_trains_under_its_old_names(in_old_folder: None, run: Run) -> None:
    text = (FIXTURE / "config.py.txt").read_text()
    assert all(f"type='{name}'" in text for name in OLD)
    init_default_scope("mmseg")
    registries = (DATA_SAMPLERS, DATASETS, HOOKS)
    assert [registry.get(name) for registry, name in zip(registries, OLD, strict=True)] == list(OLD.values())
    (Path("run") / "config.py").write_text(text)
    old = Config.fromfile("run/config.py", format_python_code=False)
    torch.manual_seed(0)
    backbone = build_backbone("cifar/resnet20")
    plan = build_plan(replace(load_config(FIXTURE, SegmentConfig), out=Path("run")), run, backbone)
    torch.save(plan.bridge.to_framework(backbone)[0], initial_file(Path("run")))
    runner = build_runner(old, run, resume=False)
    runner.train()
    assert isinstance(runner.train_dataloader.sampler, SeededSampler)
    assert isinstance(runner.train_dataloader.dataset, SeededDataset)
    assert any(isinstance(hook, SeededSteps) for hook in runner.hooks)
    assert (Path("run") / "iter_2.pth").exists()
    assert runner.test()["mIoU"] >= 0


def test_a_config_of_a_new_run_differs_from_an_old_one_in_those_names_the_reading_of_masks_and_the_clock(
    in_old_folder: None, run: Run
) -> None:
    config = replace(load_config(FIXTURE, SegmentConfig), out=Path("run"))
    new = build_plan(config, run, build_backbone("cifar/resnet20")).resolved
    assert new.custom_hooks.pop() == {"type": "SaveByClock", "minutes": 10.0}
    new.dump("new.py")
    text = (FIXTURE / "config.py.txt").read_text()
    for name, kind in OLD.items():
        text = text.replace(name, kind.__name__)
    read = "    dict(type='LoadAnnotations'),\n"
    inference = "test_pipeline=[\n    dict(type='LoadPicture'),\n"
    text = text.replace(f"{inference}{read}", inference).replace("LoadAnnotations", "LoadMask")
    assert Path("new.py").read_text() == text
