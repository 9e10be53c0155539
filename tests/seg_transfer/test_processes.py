"""Segmentation in processes of its own."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config

from stillroom.runs import read_results
from stillroom.seg_transfer import SegmentConfig, finetune

LINEAR = {"head": "linear", "frozen": True, "aux_weight": 0.0, "steps": 3}


@pytest.mark.parametrize("changes", [{}, pytest.param(LINEAR, marks=pytest.mark.slow)], ids=["trained", "frozen"])
def test_two_processes_train_one_net(
    make_config: Callable[..., SegmentConfig], in_two_processes: Callable, changes: dict
) -> None:
    config = make_config(**({"steps": 2, "batch_size": 4} | changes))
    assert in_two_processes(lambda: str(finetune(config))) == [str(config.out)] * 2
    loader = Config.fromfile(str(config.out / "config.py")).train_dataloader
    assert loader.batch_size == 2, "they share the batch"
    results = read_results(config.out)
    assert results.datasets["test"].count == 3 and 0 <= results.metrics["mIoU"] <= 1


@pytest.mark.slow
def test_a_config_of_mmsegmentation_runs_in_a_fresh_process(
    make_config: Callable[..., SegmentConfig], tmp_path: Path
) -> None:
    """Where nothing has run before that would have told MMEngine where to look for names."""
    begun = finetune(make_config(checkpoint=("random:torchvision/resnet18",), steps=1))
    theirs = Config.fromfile(str(begun / "config.py"), format_python_code=False)
    theirs.model.backbone = {"type": "ResNet", "depth": 18}
    theirs.custom_hooks, theirs.train_dataloader.sampler = [], {"type": "InfiniteSampler"}
    theirs.train_dataloader.dataset = theirs.train_dataloader.dataset.dataset
    theirs.dump(str(tmp_path / "theirs.py"))
    words = ["pspnet", "--checkpoint", "random:torchvision/resnet18", "--framework-config", str(tmp_path / "theirs.py")]
    words += ["--out", str(tmp_path / "own"), "--device", "cpu"]
    script = "from stillroom.seg_transfer.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_results(tmp_path / "own").protocol.startswith("segmentation/v1 framework-config=theirs.py")
