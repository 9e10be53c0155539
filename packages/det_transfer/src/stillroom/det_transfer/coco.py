"""COCO's format: one JSON, and a folder of images."""

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.backbone.atomic import refuse_missing
from stillroom.det_transfer.annotations import (
    Annotated,
    Box,
    Images,
    check_boxes,
    check_files,
    encode,
    fault_of_mask,
    refuse_doubles,
)
from stillroom.det_transfer.config import OnBadBox

KINDS: dict[str, type] = {"file_name": str, "name": str, "bbox": list}
"""What a value must be; the others are whole numbers."""


def read_coco(
    file: Path, folder: Path, on_bad_box: OnBadBox, masks: bool = False, known: Collection[int] = ()
) -> tuple[Images, dict[int, str]]:
    """The images of a JSON, with their boxes.

    Args:
        file: the JSON.
        folder: of its images.
        on_bad_box: refuse or leave out boxes without area or outside of their image.
        masks: read the masks too.
        known: ids of bad boxes that are left out in any case.

    Returns:
        The images, and the classes: name by category id.

    Raises:
        ValueError: a file or folder that is missing, a JSON of another kind, ids that stand twice or nowhere, images
            that are missing or of another size, bad boxes; each by name.
    """
    content = load(file)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}, where the images of {file} were looked for")
    names = {category["id"]: category["name"] for category in content["categories"]}
    for what in ("images", "annotations", "categories"):
        refuse_doubles((entry["id"] for entry in content[what]), f"ids of {what}", file)
    refuse_doubles((category["name"] for category in content["categories"]), "names of categories", file)
    places = {image["id"]: os.path.normpath(image["file_name"]) for image in content["images"]}
    if outside := [place for place in places.values() if Path(place).is_absolute() or ".." in Path(place).parts]:
        raise ValueError(f"{file} lists {len(outside)} images outside of {folder}, the first is {outside[0]}")
    refuse_doubles(places.values(), "images", file)
    labels = {category: label for label, category in enumerate(sorted(names))}
    boxes = read_boxes(content["annotations"], {image["id"]: image for image in content["images"]}, labels, file, masks)
    rows = [
        Annotated(
            id=image["id"], file=folder / places[image["id"]], width=image["width"], height=image["height"],
            boxes=tuple(boxes.get(image["id"], ())),
        )
        for image in content["images"]
    ]  # fmt: skip
    check_files(rows, file)
    kept, left_out = check_boxes(rows, file, on_bad_box, [box_name(number) for number in known])
    return Images(root=folder, rows=tuple(kept), left_out=tuple(left_out)), names


def box_name(number: int) -> str:
    """What an error calls a box."""
    return f"box {number}"


def load(file: Path) -> Mapping[str, Any]:
    """The JSON as it stands.

    Raises:
        ValueError: no such file, no JSON, or one of another kind.
    """
    refuse_missing(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    wanted = {
        "images": ("id", "file_name", "width", "height"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    for what, keys in wanted.items():
        entries = content.get(what) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{file} is not in COCO's format: it has no list of {what}")
        for place, entry in enumerate(entries):
            if lacks := next((key for key in keys if key not in entry), None):
                raise ValueError(f"{file}: entry {place} of its {what} has no {lacks}")
            if odd := next((key for key in keys if not isinstance(entry[key], KINDS.get(key, int))), None):
                raise ValueError(f"{file}: entry {place} of its {what} has {entry[odd]!r} as {odd}")
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
    """The boxes by image id.

    Raises:
        ValueError: boxes of an image or a category that nobody lists, or that are no four numbers; masks that are none.
    """
    found: dict[int, list[Box]] = {}
    for key, known, what in (("image_id", images, "image"), ("category_id", labels, "category")):
        if strange := [entry for entry in annotations if entry[key] not in known]:
            one = strange[0]
            raise ValueError(
                f"{file}: {len(strange)} boxes are of no {what}, such as {one['id']}, of {what} {one[key]}"
            )
    for entry in annotations:
        image = images[entry["image_id"]]
        bbox = entry["bbox"]
        if len(bbox) != 4 or not all(isinstance(v, int | float) for v in bbox):
            raise ValueError(f"{file}: box {entry['id']} is {bbox}: left, upper edge, width, height were expected")
        x, y, width, height = map(float, bbox)
        mask = entry.get("segmentation") if masks else None
        if mask and (fault := fault_of_mask(mask, image["width"], image["height"])):
            raise ValueError(f"{file}: the mask of box {entry['id']} {fault}")
        area = entry.get("area")
        if area is not None and not (isinstance(area, int | float) and 0 <= area < math.inf):
            raise ValueError(f"{file}: box {entry['id']} has an area of {area!r}")
        if entry.get("iscrowd", 0) not in (0, 1):
            raise ValueError(f"{file}: box {entry['id']} has {entry['iscrowd']!r} as iscrowd: 0 or 1 was expected")
        box = Box(
            x=x, y=y, width=width, height=height, label=labels[entry["category_id"]],
            crowd=bool(entry.get("iscrowd", 0)), area=float(width * height if area is None else area),
            mask=encode(mask, image["width"], image["height"]) if mask else None, name=box_name(entry["id"]),
        )  # fmt: skip
        found.setdefault(entry["image_id"], []).append(box)
    return found
