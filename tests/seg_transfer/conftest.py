"""Small folders of images with masks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg", reason="MMSegmentation is not installed: pip install onedl-mmsegmentation")

from stillroom.seg_transfer import SegmentConfig

CLASSES = ("background", "left", "right")


def write_pair(root: Path, part: str, name: str, rng: np.random.Generator, size: tuple[int, int] = (40, 32)) -> None:
    """A noisy image (width, height) with a red block on the left and a blue one on the right, and its mask."""
    width, height = size
    pixels = rng.integers(0, 90, (height, width, 3))
    mask = np.zeros((height, width), np.uint8)
    top, side = int(rng.integers(2, height // 2)), height // 3
    for label, left, channel in ((1, 2, 0), (2, width - side - 2, 2)):
        mask[top : top + side, left : left + side] = label
        pixels[top : top + side, left : left + side, channel] += 160
    for folder, suffix, picture in (("images", "jpg", pixels.astype(np.uint8)), ("labels", "png", mask)):
        (root / folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / folder / part / f"{name}.{suffix}")


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
            "checkpoint": ("random:cifar/resnet20",), "data": masked, "out": tmp_path / "run", "channels": 8,
            "steps": 4, "batch_size": 2, "crop": 32, "log_every": 1, "save_every": 2, "workers": 0, "device": "cpu",
        }  # fmt: skip
        return SegmentConfig(**(settings | changes))

    return make
