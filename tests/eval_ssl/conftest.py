"""A small evaluation and a checkpoint, for the tests of eval_ssl."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from evaluations import small_config

from stillroom.backbone import build_backbone, replace_input, save_checkpoint
from stillroom.eval_ssl import KnnConfig


@pytest.fixture
def config(labelled: Callable[..., Path], tmp_path: Path) -> KnnConfig:
    """36 training and 18 test images of three colours."""
    train, test = labelled("train", per_class=12), labelled("test", per_class=6, seed=1)
    return small_config(train, test, tmp_path / "run")


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A checkpoint as distillation leaves it: read before the last ReLU, fed with 24 px."""
    torch.manual_seed(3)
    backbone = replace_input(build_backbone("cifar/resnet20", feature="before"), size=24)
    save_checkpoint(tmp_path / "student", backbone, method="kdep", package="stillroom-distill")
    return tmp_path / "student"
