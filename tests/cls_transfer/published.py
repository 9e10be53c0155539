"""Small generated copies of data sets in the layouts that their authors publish."""

from pathlib import Path

import numpy as np
from PIL import Image

from stillroom.cls_transfer.datasets import Cifar


def write_cifar(data: Path, cifar: Cifar, names: list[str], per_file: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Random records; returns them by file."""
    folder = data / cifar.folder
    folder.mkdir(parents=True)
    (folder / cifar.names).write_text("\n".join(names) + "\n\n")
    generator = np.random.default_rng(seed)
    written = {}
    for file in (*cifar.train, *cifar.test):
        records = generator.integers(0, 256, (per_file, cifar.labels + 3072), dtype=np.uint8)
        records[:, : cifar.labels] = 200 if cifar.labels == 2 else 0  # of the coarse label nothing is made
        records[:, cifar.labels - 1] = np.arange(per_file) % len(names)
        records.tofile(folder / file)
        written[file] = records
    return written


def write_image(path: Path, colour: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(path)


def write_dtd(data: Path) -> None:
    names = [f"{kind}/{kind}_{i:04d}.jpg" for kind in ("banded", "dotted") for i in range(6)]
    for name in names:
        write_image(data / "dtd" / "images" / name)
    (data / "dtd" / "labels").mkdir()
    for split in (1, 2):
        for place, part in enumerate(("train", "val", "test")):
            chosen = [name for i, name in enumerate(names) if (i + split) % 3 == place]
            (data / "dtd" / "labels" / f"{part}{split}.txt").write_text("\n".join(chosen) + "\n")


def write_caltech(data: Path, per_class: int = 63) -> None:
    for number, kind in ((1, "ak47"), (56, "dog"), (257, "clutter")):
        for i in range(per_class):
            write_image(data / "256_ObjectCategories" / f"{number:03d}.{kind}" / f"{number:03d}_{i:04d}.jpg", i)
    write_image(data / "256_ObjectCategories" / "056.dog" / "greg" / "other.jpg")


def write_cub(data: Path) -> None:
    root = data / "CUB_200_2011"
    names = [f"{c:03d}.{kind}/{kind}_{i}.jpg" for c, kind in ((1, "Albatross"), (2, "Auklet")) for i in range(4)]
    for name in names:
        write_image(root / "images" / name)
    (root / "images.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, start=1)))
    (root / "image_class_labels.txt").write_text("".join(f"{i} {1 + (i > 4)}\n" for i in range(1, 9)))
    (root / "train_test_split.txt").write_text("".join(f"{i} {i % 2}\n" for i in range(1, 9)))
    (root / "classes.txt").write_text("1 001.Albatross\n2 002.Auklet\n")
