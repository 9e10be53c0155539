"""The images of the stored run of version 0.3, uncompressed: their sizes, and so its fingerprints, never change."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_data(folder: Path) -> None:
    """Write train/ and test/ with two classes of uncompressed images."""
    generator = np.random.default_rng(0)
    for part, per_class in (("train", 8), ("test", 3)):
        for label, name in enumerate(("dark", "light")):
            (folder / part / name).mkdir(parents=True)
            for index in range(per_class):
                pixels = generator.integers(0, 128, (36, 36, 3), dtype=np.uint8) + np.uint8(127 * label)
                Image.fromarray(pixels).save(folder / part / name / f"{index}.bmp")
