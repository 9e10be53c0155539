"""Small images with masks."""

from pathlib import Path

import numpy as np
from PIL import Image

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
