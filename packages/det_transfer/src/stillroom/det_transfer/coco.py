"""COCO's format: one JSON, and a folder of images."""

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pycocotools import mask as rle

from stillroom.backbone.atomic import refuse_missing
from stillroom.det_transfer.annotations import (
    AnnotatedImage,
    Box,
    Images,
    check_boxes,
    check_files,
    check_unit,
    encode_mask,
    mask_fault,
    refuse_duplicates,
)
from stillroom.det_transfer.config import OnBadBox

VALUE_TYPES: dict[str, Any] = {"file_name": str, "name": str, "bbox": list}
VALUE_TYPES |= dict.fromkeys(("id", "image_id", "category_id"), int | str)
"""Types of the values that are not whole numbers."""
AREA_FACTOR, BOX_OVER_AREA, AREA_SLACK = 2.0, 100.0, 16.0
"""An area is wrong that is off by more than the first factor from its mask's; without a mask, that is over the box's by
this factor, or under it by the second. A difference of less than the slack, square pixels, is not."""

Id = int | str


def read_coco(
    file: Path,
    folder: Path,
    on_bad_box: OnBadBox,
    masks: bool = False,
    known: Collection[int] = (),
    published: bool = False,
) -> tuple[Images, dict[Id, str]]:
    """Read the images of a COCO JSON with their boxes.

    Args:
        file: the JSON.
        folder: holds its images.
        on_bad_box: refuse or leave out boxes without area or outside of their image.
        masks: whether to read the masks too.
        known: ids of the bad boxes that are always left out.
        published: whether the areas are those of a published data set, which apply as they are.

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
        ids = [entry["id"] for entry in content[what]]
        refuse_duplicates(ids, f"{kind} ids", file)
        refuse_duplicates(map(str, ids), f"{kind} ids", file)  # 1 and "1" are one id
    refuse_duplicates((category["name"] for category in content["categories"]), "category names", file)
    paths = [locate(folder, image["file_name"]) for image in content["images"]]
    if outside := [path for path in paths if is_outside(path)]:
        raise ValueError(f"{file} lists {len(outside)} images outside of {folder}, the first is {outside[0]}")
    refuse_duplicates(paths, "images", file)
    strings = any(isinstance(image["id"], str) for image in content["images"])
    rows = [
        AnnotatedImage(
            id=number if strings else image["id"],
            json_id=image["id"] if strings else None,
            file=folder / path,
            width=image["width"],
            height=image["height"],
        )
        for number, (image, path) in enumerate(zip(content["images"], paths, strict=True), start=1)
    ]
    check_files(rows, file)  # first, because masks are decoded at the sizes that the JSON states
    labels = {str(category): label for label, category in enumerate(sort_ids(names))}
    images = {str(image["id"]): image for image in content["images"]}
    boxes = read_boxes(content["annotations"], images, labels, file, masks)
    refuse_corners(content["annotations"], file)
    notes = [] if published else correct_areas(boxes, content["annotations"], images, file)
    rows = [replace(row, boxes=tuple(boxes.get(key, {}).values())) for key, row in zip(images, rows, strict=True)]
    moved = [
        image["file_name"]
        for image, path in zip(content["images"], paths, strict=True)
        if path != os.path.normpath(image["file_name"])
    ]
    if moved:
        notes.append(
            f"{file} names {len(moved)} of {len(paths)} images by paths that are not below {folder}, such as "
            f"{moved[0]!r}: they were found by their file names"
        )
    notes += check_unit(rows, file)
    kept, left_out = check_boxes(rows, file, on_bad_box, [box_name(number) for number in known])
    return Images(root=folder, rows=tuple(kept), left_out=tuple(left_out), notes=tuple(notes)), names


def sort_ids(ids: Iterable[Id]) -> list[Id]:
    """Ids in the order of their numbers; those that are no numbers follow, in the order of the alphabet."""
    return sorted(ids, key=lambda value: (0, int(value), "") if str(value).isdecimal() else (1, 0, str(value)))


def locate(folder: Path, name: str) -> str:
    """The path of an image below its folder, for its name in a JSON.

    Where there is no such file, Windows' separators are taken for ours, `%20` and the like for the characters that they
    stand for, and then the file name alone is looked up in the folder: other tools write paths of the machine that
    they ran on, and addresses.
    """
    path, ours = os.path.normpath(name), os.path.normpath(name.replace("\\", "/"))
    decoded = unquote(ours)
    candidates = (path, ours, decoded, Path(ours).name, Path(decoded).name)
    there = (one for one in candidates if one and not is_outside(one) and (folder / one).is_file())
    return next(there, ours)


def is_outside(path: str) -> bool:
    """Whether a normalised relative path leads out of its folder."""
    return Path(path).is_absolute() or ".." in Path(path).parts


def box_name(number: Id) -> str:
    """A box's name in error sentences."""
    return f"box {number}"


def load_coco_json(file: Path) -> Mapping[str, Any]:
    """Load a JSON and check that it is in COCO's format.

    Raises:
        ValueError: no such file, not valid JSON, or JSON in another format.
    """
    refuse_missing(file)
    try:
        # bytes may begin with a byte-order mark; integers beyond all floats become infinite, which is refused below
        content = json.loads(
            file.read_bytes(), parse_int=lambda digits: int(digits) if len(digits) < 300 else float(digits)
        )
    except (ValueError, RecursionError) as error:
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
            for key in keys:
                value, kind = entry[key], VALUE_TYPES.get(key, int)
                if isinstance(value, float) and value.is_integer() and kind not in (str, list):
                    entry[key] = value = int(value)  # 64.0 means 64
                if not isinstance(value, kind) or isinstance(value, bool):
                    raise ValueError(f"{file}: entry {index} of its {what} has {value!r} as {key}")
    for what in ("images", "categories"):
        if not content[what]:
            raise ValueError(f"{file} lists no {what}")
    return content


def read_boxes(
    annotations: Sequence[Mapping[str, Any]],
    images: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, int],
    file: Path,
    masks: bool,
) -> dict[str, dict[int, Box]]:
    """Read the boxes of a COCO JSON by image id, each by its index in the JSON's list.

    Args:
        annotations: the JSON's list.
        images: the JSON's entries by image id, as a string.
        labels: class index by category id, as a string.
        file: the JSON.
        masks: whether to read the masks too.

    Raises:
        ValueError: boxes of an image or a category that is not listed, or that are not four numbers; invalid masks.
    """
    boxes: dict[str, dict[int, Box]] = {}
    for key, known, what in (("image_id", images, "image"), ("category_id", labels, "category")):
        if dangling := [entry for entry in annotations if str(entry[key]) not in known]:
            first = dangling[0]
            raise ValueError(
                f"{file}: {len(dangling)} boxes have the id of no {what}, the first is box {first['id']} "
                f"with {key} {first[key]}"
            )
    for index, entry in enumerate(annotations):
        image = images[str(entry["image_id"])]
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
            label=labels[str(entry["category_id"])],
            crowd=bool(entry.get("iscrowd", 0)),
            area=float(width * height if area is None else area),
            mask=encode_mask(mask, image["width"], image["height"]) if mask else None,
            name=box_name(entry["id"]),
        )
        boxes.setdefault(str(entry["image_id"]), {})[index] = box
    return boxes


def refuse_corners(annotations: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Refuse boxes that are left, upper, right and lower edge, as their areas show.

    Args:
        annotations: the JSON's list.
        file: the JSON.

    Raises:
        ValueError: every area is that of its box read so, and none is that of left, upper edge, width and height.
    """
    boxes = [(entry["area"], *entry["bbox"]) for entry in annotations if entry.get("area")]
    if boxes and all(
        math.isclose(area, (c - a) * (d - b), rel_tol=0.01) and not math.isclose(area, c * d, rel_tol=0.01)
        for area, a, b, c, d in boxes
    ):
        raise ValueError(
            f"all {len(boxes)} areas of {file} are those of boxes given as left, upper, right, lower edge, expected "
            f"left, upper edge, width, height: subtract the first two numbers of each box from its last two"
        )


def correct_areas(
    boxes: Mapping[str, dict[int, Box]],
    annotations: Sequence[Mapping[str, Any]],
    images: Mapping[str, Mapping[str, Any]],
    file: Path,
) -> list[str]:
    """Replace, in place, areas that contradict the mask or the box of their object: COCO's sizes are read from them.

    Args:
        boxes: by image id, each by its index in the JSON's list.
        annotations: the JSON's list.
        images: the JSON's entries by image id.
        file: the JSON.

    Returns:
        A sentence with their number, if there are any.
    """
    wrong: list[Box] = []
    box_over_area = 1.0 if share_one_factor(boxes, annotations) else BOX_OVER_AREA
    for image_id, members in boxes.items():
        size = images[image_id]["width"], images[image_id]["height"]
        for index, box in members.items():
            mask = annotations[index].get("segmentation") or None
            area, below = max(box.width * box.height, 0.0), box_over_area
            if mask and mask_fault(mask, *size) is None:
                is_rle = isinstance(mask, dict)
                area = float(rle.area(encode_mask(mask, *size))) if is_rle else sum(map(polygon_area, mask), 0.0)
                below = AREA_FACTOR
            off = not area / below <= box.area <= area * AREA_FACTOR
            if off and math.isfinite(area) and abs(box.area - area) > AREA_SLACK:
                wrong.append(box)
                members[index] = replace(box, area=area)
    if not wrong:
        return []
    return [
        f"{len(wrong)} boxes of {file} have an area that contradicts their mask or box, the first is {wrong[0].name} "
        f"with {wrong[0].area:g}: their areas were computed anew"
    ]


def share_one_factor(boxes: Mapping[str, dict[int, Box]], annotations: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all areas without a mask are the same small share of their box: those of the images at another size."""
    bare = [
        box.area / (box.width * box.height)
        for members in boxes.values()
        for index, box in members.items()
        if not annotations[index].get("segmentation") and min(box.width, box.height, box.area) > 0
    ]
    return len(bare) > 1 and max(bare) <= min(1.01 * min(bare), 1 / AREA_FACTOR)


def polygon_area(polygon: Sequence[int | float]) -> float:
    """Area of a polygon, x and y in turns, by the shoelace formula, square pixels."""
    x, y = polygon[::2], polygon[1::2]
    return float(abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x))))) / 2
