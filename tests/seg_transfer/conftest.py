"""Small folders of images with masks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pairs import CLASSES, write_pair

pytest.importorskip("mmseg", reason="MMSegmentation is not installed: pip install onedl-mmsegmentation")

from stillroom.seg_transfer import SegmentConfig


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """Nine training and three validation images."""
    root, rng = tmp_path / "masked", np.random.default_rng(0)
    for part, count in (("train", 9), ("val", 3)):
        for number in range(count):
            write_pair(root, part, f"{number:02d}", rng)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return root


@pytest.fixture
def make_config(masked: Path, tmp_path: Path) -> Callable[..., SegmentConfig]:
    """A run of seconds, with changes."""

    def make(**changes: object) -> SegmentConfig:
        settings: dict = {
            "checkpoint": ("random:cifar/resnet20",),
            "data": masked,
            "out": tmp_path / "run",
            "channels": 8,
            "steps": 4,
            "batch_size": 2,
            "crop": 32,
            "log_every": 1,
            "save_every": 2,
            "workers": 0,
            "device": "cpu",
        }
        return SegmentConfig(**(settings | changes))

    return make
