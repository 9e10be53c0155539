"""What a run learns from and is measured on."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from stillroom.backbone import BrokenImageError
from stillroom.backbone.results import DatasetRecord
from stillroom.det_transfer.annotations import Images
from stillroom.det_transfer.coco import read_coco
from stillroom.det_transfer.config import DetectConfig, Layout, OnBadBox, check_source
from stillroom.det_transfer.voc import VOC_CLASSES, Listed, find_classes, read_voc

Sample = TypeVar("Sample")

PUBLISHED: dict[Layout, tuple[int, int]] = {"coco2017": (118_287, 5000), "voc0712": (16_551, 4952)}
"""Training and test images of each."""
FLAT = (918, 2206849)
"""Ids of the two boxes of COCO's training images that are 0 pixels high, as published."""


@dataclass(frozen=True, kw_only=True)
class DetectionData:
    """What a run learns from and is measured on.

    Args:
        classes: names, in the order of the labels.
        category_ids: of the classes in the JSON that they come from; None: 1 and up.
        train, val: the images.
        words: what they are, for the protocol id.
        own: the user's own config that names them, and more.
    """

    classes: tuple[str, ...]
    train: Images
    val: Images
    category_ids: tuple[int, ...] | None = None
    words: str = ""
    own: DatasetRecord | None = None

    @property
    def records(self) -> dict[str, DatasetRecord]:
        """For results.json, by role; none of it may change while a run goes on."""
        own = {} if self.own is None else {"framework_config": self.own}
        return {"train": self.train.record, "test": self.val.record, **own}


def read_data(config: DetectConfig) -> DetectionData:
    """Find the images of a run and their boxes, and look at what can be wrong with them.

    Raises:
        ValueError: see `check_source`, `read_coco` and `read_voc`; classes that differ, nothing to learn from, masks
            that are missing.
    """
    check_source(config)
    found = _read(
        config.data, config.layout, config.splits, config.train, config.val, config.partial, config.on_bad_box,
        config.detector == "mask-rcnn",
    )  # fmt: skip
    train = found.train if config.keep_empty else found.train.filled()
    refuse_empty(found)
    if config.detector == "mask-rcnn" and (bare := found.train.without_masks + found.val.without_masks):
        raise ValueError(
            f"--detector mask-rcnn needs a mask with every box: {len(bare)} have none, the first is {bare[0]}"
        )
    return replace(found, train=train)


def refuse_empty(data: DetectionData) -> None:
    """Refuse data without boxes.

    Raises:
        ValueError: nothing to learn from, or nothing to be found.
    """
    if not data.train.filled().rows:
        raise ValueError(f"none of the {len(data.train)} training images in {data.train.root} has a box")
    if not data.val.filled().rows:
        raise ValueError(f"none of the {len(data.val)} images in {data.val.root} to be measured on has a box")


def readable(batch: Sequence[Sample | str]) -> list[Sample]:
    """A batch, where all of it could be read.

    Args:
        batch: samples; in place of one that could not be read, the sentence that says why.

    Raises:
        BrokenImageError: with the first that could not.
    """
    if broken := [sample for sample in batch if isinstance(sample, str)]:
        raise BrokenImageError(broken[0])
    return [sample for sample in batch if not isinstance(sample, str)]


def forget() -> None:
    """Read from disk what is asked for next: a command keeps what it has read, the next command may find it changed."""
    _read.cache_clear()


@lru_cache(maxsize=2)  # the runs of a sweep learn from the same images
def _read(
    data: Path | None,
    layout: Layout,
    splits: tuple[str, str],
    train: tuple[Path, Path] | None,
    val: tuple[Path, Path] | None,
    partial: bool,
    on_bad_box: OnBadBox,
    masks: bool,
) -> DetectionData:
    if train is not None and val is not None:
        found = _both(train, val, on_bad_box, masks)
        say_left_out(found)
        return found
    assert data is not None
    match layout:
        case "coco":
            parts = [(data / "annotations" / f"{part}.json", data / "images" / part) for part in splits]
            found = _both(parts[0], parts[1], on_bad_box, masks)
        case "coco2017":
            parts = [
                (data / "annotations" / f"instances_{part}2017.json", data / f"{part}2017") for part in ("train", "val")
            ]
            found = _both(parts[0], parts[1], on_bad_box, masks, FLAT)
        case "voc":
            lists = [Listed(data, name) for name in splits]
            classes = find_classes(lists[0])  # what is in no training image cannot be learned
            train_, val_ = (read_voc([one], classes, on_bad_box) for one in lists)
            found = DetectionData(classes=classes, train=train_, val=val_)
        case "voc0712":
            learn = [Listed(data / year, "trainval") for year in ("VOC2007", "VOC2012")]
            train_ = read_voc(learn, VOC_CLASSES, on_bad_box)
            found = DetectionData(
                classes=VOC_CLASSES,
                train=train_,
                val=read_voc([Listed(data / "VOC2007", "test")], VOC_CLASSES, on_bad_box),
            )
    say_left_out(found)
    if layout not in PUBLISHED:
        return found
    counts = (len(found.train), len(found.val))
    if counts != PUBLISHED[layout] and not partial:
        raise ValueError(
            f"{data} holds {counts[0]} training and {counts[1]} test images of {layout}, "
            f"{PUBLISHED[layout][0]} and {PUBLISHED[layout][1]} were published: complete it, or say --partial"
        )
    words = layout + (" partial" if counts != PUBLISHED[layout] else "")
    return replace(found, words=words)


def _both(
    train: tuple[Path, Path], val: tuple[Path, Path], on_bad_box: OnBadBox, masks: bool, known: tuple[int, ...] = ()
) -> DetectionData:
    """Two JSONs of the same classes; see `read_coco`."""
    learn, names = read_coco(*train, on_bad_box, masks, known)
    measure, others = read_coco(*val, on_bad_box, masks)
    if names != others:
        differ = sorted({*names.items()} ^ {*others.items()})
        raise ValueError(f"{train[0]} and {val[0]} have other categories, such as {differ[0][1]!r} ({differ[0][0]})")
    ids = tuple(sorted(names))
    return DetectionData(classes=tuple(names[key] for key in ids), category_ids=ids, train=learn, val=measure)


def say_left_out(found: DetectionData) -> None:
    """Name the boxes that were left out, the first ten of each part, and count the images without any."""
    for part in (found.train, found.val):
        for sentence in part.left_out[:10]:
            print(f"left out: {sentence}", file=sys.stderr)
        if len(part.left_out) > 10:
            print(f"left out: {len(part.left_out) - 10} more of {part.root}", file=sys.stderr)
    if empty := len(found.train) - len(found.train.filled()):
        print(f"{empty} of {len(found.train)} training images have no box: --keep-empty learns from them too",
              file=sys.stderr)  # fmt: skip
