"""The training and validation data of a run."""

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from stillroom.det_transfer.annotations import Images, refuse_thin
from stillroom.det_transfer.coco import Id, read_coco, sort_ids
from stillroom.det_transfer.config import DetectConfig, Layout, OnBadBox, VocBase, check_source
from stillroom.det_transfer.voc import VOC_CLASSES, ImageList, read_classes, read_voc
from stillroom.images import BrokenImageError
from stillroom.images.source import count_shared
from stillroom.runs.results import DatasetRecord

Sample = TypeVar("Sample")

PUBLISHED: dict[Layout, tuple[int, int]] = {"coco2017": (118_287, 5000), "voc0712": (16_551, 4952)}
"""Number of training and test images of each published data set."""
COCO_ZERO_HEIGHT_BOXES = (918, 2206849)
"""Ids of the two boxes in COCO 2017's training annotations that are 0 pixels high, as published."""


@dataclass(frozen=True, kw_only=True)
class DetectionData:
    """The training and validation data of a run.

    Args:
        classes: names, in the order of the labels.
        category_ids: ids of the classes in the JSON that they come from; None: 1 and up.
        train, val: the images.
        name: of a published data set, for the protocol id.
        user_config: record of the user's LazyConfig that names the data.
    """

    classes: tuple[str, ...]
    train: Images
    val: Images
    category_ids: tuple[Id, ...] | None = None
    name: str = ""
    user_config: DatasetRecord | None = None

    @property
    def records(self) -> dict[str, DatasetRecord]:
        """Records for results.json by role; a run whose records have changed is not resumed."""
        user_config = {} if self.user_config is None else {"framework_config": self.user_config}
        return {"train": self.train.record, "test": self.val.record, **user_config}

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about the data: what was assumed or corrected, and what looks like a mistake."""
        notes = [*self.train.notes, *self.val.notes]
        for role, images in (("training", self.train), ("validation", self.val)):
            used = {box.label for row in images.rows for box in row.boxes if not box.crowd}
            if unused := [name for label, name in enumerate(self.classes) if label not in used]:
                more = ", ..." if len(unused) > 5 else ""
                notes.append(
                    f"{len(unused)} of {len(self.classes)} classes have no box in the {role} images: "
                    f"{', '.join(unused[:5])}{more}"
                )
            objects = Counter(
                (row.id, b.label, b.x, b.y, b.width, b.height) for row in images.rows for b in row.boxes if not b.crowd
            )
            if repeated := sum(count > 1 for count in objects.values()):
                notes.append(f"{repeated} objects of the {role} images are annotated more than once, by the same box")
        alike = defaultdict(list)
        for name in self.classes:
            alike[name.strip().casefold()].append(repr(name))
        pairs = [" and ".join(names) for names in alike.values() if len(names) > 1]
        if pairs:
            notes.append(f"classes differ only by case or spaces, and are kept apart: {', '.join(pairs)}")
        return tuple(notes)


def read_data(config: DetectConfig) -> DetectionData:
    """Read the images of a run with their boxes, and validate them.

    Raises:
        ValueError: see `check_source`, `read_coco`, `read_voc` and `refuse_thin`; classes that differ between the
            splits, nothing to train on, missing masks.
    """
    check_source(config)
    data = _read(
        config.data,
        config.layout,
        config.splits,
        config.train,
        config.val,
        config.partial,
        config.on_bad_box,
        config.detector == "mask-rcnn",
        config.voc_base,
    )
    train = data.train if config.keep_empty else data.train.with_targets()
    refuse_empty(data)
    for images in (data.train, data.val):
        refuse_thin(((row.file, row.width, row.height) for row in images.rows), config.max_size)
    if config.detector == "mask-rcnn" and (bare := data.train.boxes_without_mask + data.val.boxes_without_mask):
        raise ValueError(
            f"--detector mask-rcnn needs a mask with every box: {len(bare)} have none, the first is {bare[0]}"
        )
    return replace(data, train=train)


def refuse_empty(data: DetectionData) -> None:
    """Refuse data without boxes.

    Raises:
        ValueError: no box in the training images, or none in the validation images.
    """
    if not data.train.with_targets().rows:
        raise ValueError(f"none of the {len(data.train)} training images in {data.train.root} has a box")
    if not data.val.with_targets().rows:
        raise ValueError(f"none of the {len(data.val)} validation images in {data.val.root} has a box")


def refuse_broken(batch: Sequence[Sample | str]) -> list[Sample]:
    """Return a batch, or refuse one with an image that could not be read.

    Args:
        batch: samples; in place of one that could not be read, the error sentence.

    Raises:
        BrokenImageError: with the first such sentence.
    """
    if broken := [sample for sample in batch if isinstance(sample, str)]:
        raise BrokenImageError(broken[0])
    return [sample for sample in batch if not isinstance(sample, str)]


def clear_cache() -> None:
    """Forget the data that was read: it is kept within a command, and may have changed before the next one."""
    _read.cache_clear()


@lru_cache(maxsize=2)  # the runs of a sweep share their data
def _read(
    data: Path | None,
    layout: Layout,
    splits: tuple[str, str],
    train: tuple[Path, Path] | None,
    val: tuple[Path, Path] | None,
    partial: bool,
    on_bad_box: OnBadBox,
    masks: bool,
    voc_base: VocBase | None,
) -> DetectionData:
    if train is not None and val is not None:
        pair = _read_coco_pair(train, val, on_bad_box, masks)
        report_left_out(pair)
        return compare(pair)
    assert data is not None
    match layout:
        case "coco":
            parts = [(data / "annotations" / f"{part}.json", data / "images" / part) for part in splits]
            read = _read_coco_pair(parts[0], parts[1], on_bad_box, masks)
        case "coco2017":
            parts = [
                (data / "annotations" / f"instances_{part}2017.json", data / f"{part}2017") for part in ("train", "val")
            ]
            read = _read_coco_pair(parts[0], parts[1], on_bad_box, masks, COCO_ZERO_HEIGHT_BOXES, published=True)
        case "voc":
            lists = [ImageList(data, name) for name in splits]
            classes = read_classes(lists[0])  # a class that no training image has cannot be learned
            train_, val_ = (read_voc([image_list], classes, on_bad_box, voc_base) for image_list in lists)
            read = DetectionData(classes=classes, train=train_, val=val_)
        case "voc0712":
            trainval = [ImageList(data / year, "trainval") for year in ("VOC2007", "VOC2012")]
            read = DetectionData(
                classes=VOC_CLASSES,
                train=read_voc(trainval, VOC_CLASSES, on_bad_box),
                val=read_voc([ImageList(data / "VOC2007", "test")], VOC_CLASSES, on_bad_box),
            )
    report_left_out(read)
    read = compare(read)
    if layout not in PUBLISHED:
        return read
    counts = (len(read.train), len(read.val))
    if counts != PUBLISHED[layout] and not partial:
        raise ValueError(
            f"{data} holds {counts[0]} training and {counts[1]} test images of {layout}, "
            f"{PUBLISHED[layout][0]} and {PUBLISHED[layout][1]} were published: complete it, or pass --partial"
        )
    return replace(read, name=layout + (" partial" if counts != PUBLISHED[layout] else ""))


def _read_coco_pair(
    train: tuple[Path, Path],
    val: tuple[Path, Path],
    on_bad_box: OnBadBox,
    masks: bool,
    known: tuple[int, ...] = (),
    published: bool = False,
) -> DetectionData:
    """Read two JSONs with the same classes; see `read_coco`."""
    train_images, names = read_coco(*train, on_bad_box, masks, known, published)
    val_images, val_names = read_coco(*val, on_bad_box, masks, published=published)
    if names != val_names:
        category, name = min({*names.items()} ^ {*val_names.items()}, key=str)
        raise ValueError(f"{train[0]} and {val[0]} have different categories, such as {name!r} ({category})")
    ids = tuple(sort_ids(names))
    classes = tuple(names[category] for category in ids)
    return DetectionData(classes=classes, category_ids=ids, train=train_images, val=val_images)


def compare(data: DetectionData) -> DetectionData:
    """Count the validation images that are training images too, and warn of them."""
    train, val = ([row.file for row in images.rows] for images in (data.train, data.val))
    return replace(data, val=replace(data.val, in_train=count_shared(train, val, data.val.root)))


def report_left_out(data: DetectionData) -> None:
    """Print notes, the first ten boxes left out of each split, and the number of training images without a box."""
    for note in data.notes:
        print(f"note: {note}", file=sys.stderr)
    for images in (data.train, data.val):
        for sentence in images.left_out[:10]:
            print(f"left out: {sentence}", file=sys.stderr)
        if len(images.left_out) > 10:
            print(f"left out: {len(images.left_out) - 10} more of {images.root}", file=sys.stderr)
    if empty := len(data.train) - len(data.train.with_targets()):
        total = len(data.train)
        print(f"{empty} of {total} training images have no box: pass --keep-empty to train on them", file=sys.stderr)
