"""COCO's format: one JSON, and a folder of images."""

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.backbone.atomic import refuse_missing
from stillroom.det_transfer.annotations import (
    AnnotatedImage,
    Box,
    Images,
    check_boxes,
    check_files,
    encode_mask,
    mask_fault,
    refuse_duplicates,
)
from stillroom.det_transfer.config import OnBadBox

VALUE_TYPES: dict[str, type] = {"file_name": str, "name": str, "bbox": list}
"""Types of the values that are not whole numbers."""


def read_coco(
    file: Path, folder: Path, on_bad_box: OnBadBox, masks: bool = False, known: Collection[int] = ()
) -> tuple[Images, dict[int, str]]:
    """Read the images of a COCO JSON with their boxes.

    Args:
        file: the JSON.
        folder: holds its images.
        on_bad_box: refuse or leave out boxes without area or outside of their image.
        masks: whether to read the masks too.
        known: ids of the bad boxes that are always left out.

    Returns:
        The images, and the classes: name by category id.

    Raises:
        ValueError: a missing file or folder, a JSON in another format, duplicate or dangling ids, images that are
            missing or of another size, bad boxes; each by name.
    """
    content = load_coco_json(file)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}, which should hold the images of {file}")
    names = {category["id"]: category["name"] for category in content["categories"]}
    for what, kind in (("images", "image"), ("annotations", "annotation"), ("categories", "category")):
        refuse_duplicates((entry["id"] for entry in content[what]), f"{kind} ids", file)
    refuse_duplicates((category["name"] for category in content["categories"]), "category names", file)
    paths = {image["id"]: os.path.normpath(image["file_name"]) for image in content["images"]}
    if outside := [path for path in paths.values() if Path(path).is_absolute() or ".." in Path(path).parts]:
        raise ValueError(f"{file} lists {len(outside)} images outside of {folder}, the first is {outside[0]}")
    refuse_duplicates(paths.values(), "images", file)
    labels = {category: label for label, category in enumerate(sorted(names))}
    boxes = read_boxes(content["annotations"], {image["id"]: image for image in content["images"]}, labels, file, masks)
    rows = [
        AnnotatedImage(
            id=image["id"],
            file=folder / paths[image["id"]],
            width=image["width"],
            height=image["height"],
            boxes=tuple(boxes.get(image["id"], ())),
        )
        for image in content["images"]
    ]
    check_files(rows, file)
    kept, left_out = check_boxes(rows, file, on_bad_box, [box_name(number) for number in known])
    return Images(root=folder, rows=tuple(kept), left_out=tuple(left_out)), names


def box_name(number: int) -> str:
    """A box's name in error sentences."""
    return f"box {number}"


def load_coco_json(file: Path) -> Mapping[str, Any]:
    """Load a JSON and check that it is in COCO's format.

    Raises:
        ValueError: no such file, not valid JSON, or JSON in another format.
    """
    refuse_missing(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    required = {
        "images": ("id", "file_name", "width", "height"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    for what, keys in required.items():
        entries = content.get(what) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{file} is not in COCO's format: it has no list of {what}")
        for index, entry in enumerate(entries):
            if missing := next((key for key in keys if key not in entry), None):
                raise ValueError(f"{file}: entry {index} of its {what} has no {missing}")
            if wrong := next((key for key in keys if not isinstance(entry[key], VALUE_TYPES.get(key, int))), None):
                raise ValueError(f"{file}: entry {index} of its {what} has {entry[wrong]!r} as {wrong}")
    for what in ("images", "categories"):
        if not content[what]:
            raise ValueError(f"{file} lists no {what}")
    return content


def read_boxes(
    annotations: Sequence[Mapping[str, Any]],
    images: Mapping[int, Mapping[str, Any]],
    labels: Mapping[int, int],
    file: Path,
    masks: bool,
) -> dict[int, list[Box]]:
    """Read the boxes of a COCO JSON, by image id.

    Args:
        annotations: the JSON's list.
        images: the JSON's entries by image id.
        labels: class index by category id.
        file: the JSON.
        masks: whether to read the masks too.

    Raises:
        ValueError: boxes of an image or a category that is not listed, or that are not four numbers; invalid masks.
    """
    boxes: dict[int, list[Box]] = {}
    for key, known, what in (("image_id", images, "image"), ("category_id", labels, "category")):
        if dangling := [entry for entry in annotations if entry[key] not in known]:
            first = dangling[0]
            raise ValueError(
                f"{file}: {len(dangling)} boxes have the id of no {what}, the first is box {first['id']} "
                f"with {key} {first[key]}"
            )
    for entry in annotations:
        image = images[entry["image_id"]]
        bbox = entry["bbox"]
        if len(bbox) != 4 or not all(isinstance(v, int | float) for v in bbox):
            raise ValueError(f"{file}: box {entry['id']} is {bbox}, expected left, upper edge, width, height")
        x, y, width, height = map(float, bbox)
        mask = entry.get("segmentation") if masks else None
        if mask and (fault := mask_fault(mask, image["width"], image["height"])):
            raise ValueError(f"{file}: the mask of box {entry['id']} {fault}")
        area = entry.get("area")
        if area is not None and not (isinstance(area, int | float) and 0 <= area < math.inf):
            raise ValueError(f"{file}: box {entry['id']} has an area of {area!r}")
        if entry.get("iscrowd", 0) not in (0, 1):
            raise ValueError(f"{file}: box {entry['id']} has {entry['iscrowd']!r} as iscrowd, expected 0 or 1")
        box = Box(
            x=x,
            y=y,
            width=width,
            height=height,
            label=labels[entry["category_id"]],
            crowd=bool(entry.get("iscrowd", 0)),
            area=float(width * height if area is None else area),
            mask=encode_mask(mask, image["width"], image["height"]) if mask else None,
            name=box_name(entry["id"]),
        )
        boxes.setdefault(entry["image_id"], []).append(box)
    return boxes
