"""Small folders of images with boxes, in COCO's and in VOC's format."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stillroom.backbone import Backbone, build_backbone
from stillroom.det_transfer import DetectConfig

CLASSES = ("blue", "red")
WIDTH, HEIGHT = 64, 48  # pixels


def draw(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, list[int]]]]:
    """A noisy image with a blue block on the right and, mostly, a red one on the left; label and box of each."""
    pixels = rng.integers(0, 90, (HEIGHT, WIDTH, 3))
    boxes = []
    for label, low, high, channel in ((0, 36, 42, 2), (1, 3, 9, 0)):
        if label == 1 and rng.uniform() < 0.2:
            continue
        x, y, side = int(rng.integers(low, high)), int(rng.integers(3, 20)), int(rng.integers(16, 20))
        pixels[y : y + side, x : x + side, channel] += 160
        boxes.append((label, [x, y, side, side]))
    return pixels.astype(np.uint8), boxes


def polygon(box: Sequence[int]) -> list[list[int]]:
    """The corners of a box as COCO's mask."""
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


@pytest.fixture
def boxed(tmp_path: Path) -> Path:
    """Nine training and four validation images in COCO's format; category ids are 3 and 7."""
    root, rng = tmp_path / "boxed", np.random.default_rng(0)
    for part, count in (("train", 9), ("val", 4)):
        content: dict[str, list[dict[str, Any]]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}],
        }
        (root / "images" / part).mkdir(parents=True)
        for number in range(count):
            pixels, boxes = draw(rng)
            name = f"{number:02d}.png"
            Image.fromarray(pixels).save(root / "images" / part / name)
            content["images"].append({"id": 100 + number, "file_name": name, "width": WIDTH, "height": HEIGHT})
            for label, box in boxes:
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": 100 + number,
                        "category_id": (3, 7)[label],
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                        "segmentation": polygon(box),
                    }
                )
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"{part}.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def change(boxed: Path) -> Callable[[Callable[[dict], object]], Path]:
    """Change the training JSON."""

    def apply(how: Callable[[dict], object]) -> Path:
        file = boxed / "annotations" / "train.json"
        content = json.loads(file.read_text())
        how(content)
        file.write_text(json.dumps(content))
        return boxed

    return apply


XML = (
    """<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}</annotation>"""
)
OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{0}</xmin><ymin>{1}</ymin>"
    "<xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"
)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Six training and three validation images in VOC's format."""
    root, rng = tmp_path / "voc", np.random.default_rng(1)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for part, numbers in (("train", range(6)), ("val", range(6, 9))):
        for number in numbers:
            pixels, boxes = draw(rng)
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{number:03d}.jpg")
            objects = "".join(
                OBJECT.format(x + 1, y + 1, x + width, y + height, name=CLASSES[label], difficult=0)
                for label, (x, y, width, height) in boxes
            )
            xml = XML.format(width=WIDTH, height=HEIGHT, objects=objects)
            (root / "Annotations" / f"{number:03d}.xml").write_text(xml)
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{number:03d}\n" for number in numbers))
    return root


@pytest.fixture
def make_config(boxed: Path, tmp_path: Path) -> Callable[..., DetectConfig]:
    """A run of seconds, with changes."""

    def make(**changes: object) -> DetectConfig:
        settings: dict = {
            "checkpoint": ("random:cifar/resnet20",),
            "data": boxed,
            "out": tmp_path / "run",
            "backend": "torchvision",
            "fpn_dim": 16,
            "box_dim": 32,
            "rois": 8,
            "train_sizes": (48, 64),
            "test_size": 48,
            "max_size": 96,
            "steps": 4,
            "batch_size": 2,
            "warmup": 2,
            "log_every": 1,
            "save_every": 2,
            "workers": 0,
            "device": "cpu",
        }
        return DetectConfig(**(settings | changes))

    return make


@pytest.fixture
def lively() -> Callable[..., Backbone]:
    """Make a random backbone whose batch norms are not at 0 and 1."""

    def make(name: str) -> Backbone:
        torch.manual_seed(0)
        backbone = build_backbone(name)
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                module.num_batches_tracked.fill_(7)
        return backbone.eval()

    return make
