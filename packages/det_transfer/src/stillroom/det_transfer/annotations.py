"""Images with boxes in COCO's terms, and their validation."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from pycocotools import mask as rle

from stillroom.det_transfer.config import OnBadBox
from stillroom.images import BrokenImageError
from stillroom.images.decode import has_exif_orientation, open_image
from stillroom.images.source import from_paths
from stillroom.runs.results import DatasetRecord

TOLERANCE = 1.0
"""How far a box may reach beyond its image, pixels, for other tools round. For training it is clipped to the image."""
UNIT_REACH, PERCENT_REACH = 2.0, 100.0
"""Pixels. Boxes that all end within these, in images more than four times larger, are fractions or percentages."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """One annotated object.

    Args:
        x, y, width, height: pixels from the left and upper edge; the pixel (0, 0) covers 0 to 1.
        label: class index.
        crowd: the box holds many objects of the class; it is not trained on, and detections in it count neither way.
        difficult: VOC's flag for an object whose detection counts neither way.
        area: area of the object, square pixels; that of the box where the annotation has none.
        mask: COCO's compressed RLE; None without a mask.
        name: the box's name in error sentences.
    """

    x: float
    y: float
    width: float
    height: float
    label: int
    crowd: bool = False
    difficult: bool = False
    area: float
    mask: Any = None
    name: str


@dataclass(frozen=True, kw_only=True)
class AnnotatedImage:
    """An image and its boxes.

    Args:
        id: COCO's image id, or a running number.
        json_id: the image's id in the JSON, where the ids are strings and `id` is a running number.
        file: the image file.
        width, height: pixels.
        boxes: possibly none.
    """

    id: int
    file: Path
    width: int
    height: int
    boxes: tuple[Box, ...] = ()
    json_id: int | str | None = None

    @property
    def targets(self) -> tuple[Box, ...]:
        """The boxes that are trained on: all but crowds, clipped to the image."""
        return tuple(clip_box(box, self) for box in self.boxes if not box.crowd)

    @property
    def xyxy(self) -> Float[np.ndarray, "n 4"]:
        """Left, upper, right, lower edge of each target, pixels."""
        rows = [(b.x, b.y, b.x + b.width, b.y + b.height) for b in self.targets]
        return np.asarray(rows, dtype=np.float32).reshape(-1, 4)

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        """Class index of each target."""
        return np.asarray([box.label for box in self.targets], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of one split of a data set.

    Args:
        root: folder that holds them all.
        rows: the images.
        left_out: one sentence for each box that was left out.
        in_train: images of a validation split that are training images too, byte for byte; None: not compared.
        notes: sentences about what was assumed or corrected while reading.
    """

    root: Path
    rows: tuple[AnnotatedImage, ...]
    left_out: tuple[str, ...] = field(default=(), repr=False)
    in_train: int | None = None
    notes: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def record(self) -> DatasetRecord:
        """The entry in results.json; its fingerprint covers the images and their boxes."""
        files = from_paths([row.file for row in self.rows], root=self.root)
        boxes = [
            (row.id, b.label, b.x, b.y, b.width, b.height, b.area, b.crowd, b.difficult, b.mask and b.mask["counts"])
            for row in self.rows
            for b in row.boxes
        ]
        fingerprint = sha256(f"{files.fingerprint} {boxes}".encode()).hexdigest()
        return DatasetRecord(
            path=str(self.root),
            count=len(self.rows),
            fingerprint=fingerprint,
            content=files.content,
            in_train=self.in_train,
        )

    @property
    def num_boxes(self) -> int:
        """Number of boxes in all images."""
        return sum(len(row.boxes) for row in self.rows)

    @property
    def boxes_without_mask(self) -> list[str]:
        """Names, for error sentences, of the boxes without a mask."""
        return [f"{box.name} of {row.file}" for row in self.rows for box in row.boxes if box.mask is None]

    def with_targets(self) -> "Images":
        """The images that have something to train on."""
        return replace(self, rows=tuple(row for row in self.rows if not all(box.crowd for box in row.boxes)))


def encode_mask(mask: Any, width: int, height: int) -> dict[str, Any]:
    """Convert COCO's polygons or uncompressed RLE to one compressed RLE."""
    if isinstance(mask, list):
        return rle.merge(rle.frPyObjects(mask, height, width))
    return rle.frPyObjects(mask, height, width) if isinstance(mask["counts"], list) else mask


def mask_fault(mask: Any, width: int, height: int) -> str | None:
    """The reason why a mask is not valid in COCO's format, or None."""
    if isinstance(mask, list):
        good = all(isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in mask)
        good = good and all(isinstance(v, int | float) and math.isfinite(v) for part in mask for v in part)
        if not good:
            return "is not a list of polygons of at least three points each"
        sides = ((part[axis::2], side) for part in mask for axis, side in ((0, width), (1, height)))
        if any(min(values) < -side or max(values) > 2 * side for values, side in sides):
            return f"reaches beyond its image of {width} x {height} px by more than its size"
        return None
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), list | str | bytes):
        return "is neither a list of polygons nor an RLE"
    if mask.get("size") != [height, width]:
        return f"is an RLE of {mask.get('size')}, the image is {height} px high and {width} px wide"
    counts = mask["counts"]
    lengths = counts if isinstance(counts, list) else run_lengths(counts)
    if not all(isinstance(length, int) and length >= 0 for length in lengths) or sum(lengths) != height * width:
        return f"is an RLE whose runs do not fill {width} x {height} px"
    return None


def run_lengths(counts: str | bytes) -> list[int]:
    """Decode the run lengths of COCO's compressed RLE.

    Each character, less 48, carries 5 bits of a number, lowest first; its bit 6 is set when more follow, and the
    highest bit of the last five is the sign. From the fourth number on, it is the difference to the length two before
    (COCO API, maskApi.c). pycocotools itself reads past the end of a truncated string, into uninitialised memory.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in counts.encode() if isinstance(counts, str) else counts:
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return lengths


def refuse_duplicates(values: Iterable[object], what: str, source: Path) -> None:
    """Refuse ids or names that occur more than once.

    Args:
        values: the ids or names.
        what: what they are, plural.
        source: the file that lists them.

    Raises:
        ValueError: with the first duplicate and their number.
    """
    if duplicates := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"{source} has {len(duplicates)} duplicate {what}, the first is {duplicates[0]!r}")


def check_files(rows: Sequence[AnnotatedImage], source: Path) -> None:
    """Check that every image exists and has the size that its annotation states.

    Raises:
        ValueError: images that are missing, broken, rotated or of another size, with the first and their number.
    """
    missing = [row.file for row in rows if not row.file.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(rows)} images of {source} are missing, the first is {missing[0]}")
    wrong = []
    for row in rows:
        try:
            width, height, rotated = read_header(row.file)
        except BrokenImageError as error:
            wrong.append(str(error))
            continue
        if rotated:
            wrong.append(f"{row.file} is rotated by its EXIF tag, its boxes are not: save it upright")
        elif (width, height) != (row.width, row.height):
            wrong.append(f"{row.file} is {width} x {height} px, {source} states {row.width} x {row.height}")
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(rows)} images do not match their annotations; {wrong[0]}")


def read_header(file: Path) -> tuple[int, int, bool]:
    """Read an image's width and height, pixels, and whether its EXIF tag rotates it, without its pixels.

    Raises:
        BrokenImageError: not an image, damaged, or larger than Pillow's decompression limit.
    """
    with open_image(file) as opened:
        return opened.width, opened.height, has_exif_orientation(opened)


def refuse_thin(sizes: Iterable[tuple[Path, int, int]], max_size: int) -> None:
    """Refuse images whose short side would shrink to a pixel or less when the long side is `max_size`.

    Args:
        sizes: file, width and height, pixels, of each image.
        max_size: largest long side of an image that a detector sees, pixels.

    Raises:
        ValueError: with the first such image and their number.
    """
    thin = [size for size in sizes if max(size[1:]) > max_size and max(size[1:]) >= max_size * min(size[1:])]
    if thin:
        file, width, height = thin[0]
        raise ValueError(
            f"{len(thin)} images are too thin for a detector, the first is {file}, {width} x {height} px: with a long "
            f"side of --max-size {max_size} px its short side would be a pixel or less: crop it, or leave it out"
        )


def check_unit(rows: Sequence[AnnotatedImage], source: Path) -> list[str]:
    """Refuse boxes that are fractions of their image; they would be read as boxes within its first pixels.

    Returns:
        A sentence about boxes that look like percentages, if they do.

    Raises:
        ValueError: all boxes of some larger images end within `UNIT_REACH` of the corner: of every image, or at
            fractions of a pixel.
    """
    near = [row for row in rows if _lie_in_the_corner(row)]
    some = any(not edge.is_integer() for row in near for edge in _edges(row))
    if near and (some or len(near) == sum(bool(row.boxes) for row in rows)):
        raise ValueError(
            f"in {len(near)} of {len(rows)} images of {source} all boxes lie within {UNIT_REACH:g} px of the corner, "
            f"the first is {near[0].boxes[0].name} of {near[0].file.name}: they seem to be fractions from 0 to 1, "
            f"expected pixels: multiply them by the image's width and height"
        )
    boxes = [(box, row) for row in rows for box in row.boxes]
    reach = max((max(box.x + box.width, box.y + box.height) for box, _ in boxes), default=math.nan)
    side = min((min(row.width, row.height) for _, row in boxes), default=0)
    if reach <= PERCENT_REACH < side / 4:
        return [
            f"all {len(boxes)} boxes of {source} lie within {PERCENT_REACH:g} px of the corner of images of at least "
            f"{side} px: if they are percentages, multiply them by a hundredth of the image's width and height"
        ]
    return []


def _edges(image: AnnotatedImage) -> list[float]:
    return [edge for box in image.boxes for edge in (box.x, box.y, box.x + box.width, box.y + box.height)]


def _lie_in_the_corner(image: AnnotatedImage) -> bool:
    return bool(image.boxes) and max(_edges(image)) <= UNIT_REACH < min(image.width, image.height) / 4


def check_boxes(
    rows: Sequence[AnnotatedImage], source: Path, on_bad_box: OnBadBox, known: Collection[str] = ()
) -> tuple[list[AnnotatedImage], list[str]]:
    """Find boxes without area, and boxes more than a pixel outside of their image.

    Args:
        rows: the images.
        source: the file of the boxes.
        on_bad_box: refuse or leave out such boxes.
        known: names of the bad boxes that are always left out.

    Returns:
        The images, and a sentence for every box that was left out.

    Raises:
        ValueError: such boxes, where they are refused, with the first three and their number.
    """
    kept, left_out, refused = [], [], []
    for row in rows:
        boxes = []
        for box in row.boxes:
            if fault := box_fault(box, row):
                left_out.append(f"{box.name} of {row.file.name} {fault}")
                refused += [] if box.name in known else [left_out[-1]]
            else:
                boxes.append(box)
        kept.append(replace(row, boxes=tuple(boxes)))
    if refused and on_bad_box == "refuse":
        first = "; ".join(refused[:3])
        raise ValueError(f"{source} has {len(refused)} bad boxes: {first}: correct them, or pass --on-bad-box skip")
    return kept, left_out


def box_fault(box: Box, image: AnnotatedImage) -> str | None:
    """The reason why a box is not valid, or None."""
    values = (box.x, box.y, box.width, box.height)
    if not np.isfinite(values).all():
        return f"is not finite: {values}"
    if box.width <= 0 or box.height <= 0:
        return f"has no area: {box.width:g} x {box.height:g} px"
    right, lower = box.x + box.width - image.width, box.y + box.height - image.height
    if max(-box.x, -box.y, right, lower) > TOLERANCE:
        return f"reaches {max(-box.x, -box.y, right, lower):g} px beyond the image"
    left, upper, right, lower = replace(image, boxes=(replace(box, crowd=False),)).xyxy[0]
    return None if left < right and upper < lower else "has no area inside the image"


def clip_box(box: Box, image: AnnotatedImage) -> Box:
    """Clip a box to its image; one that lies inside is returned unchanged, to the bit."""
    left, upper = max(box.x, 0.0), max(box.y, 0.0)
    right, lower = min(box.x + box.width, image.width), min(box.y + box.height, image.height)
    if (left, upper, right, lower) == (box.x, box.y, box.x + box.width, box.y + box.height):
        return box
    return replace(box, x=left, y=upper, width=right - left, height=lower - upper)


def to_coco_dataset(images: Images, classes: Sequence[str]) -> dict[str, Any]:
    """Convert to COCO's format for pycocotools: category ids are 1 and up in the order of the classes."""
    annotations: list[Mapping[str, Any]] = []
    for row in images.rows:
        for box in row.boxes:
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": row.id,
                "category_id": box.label + 1,
                "bbox": [box.x, box.y, box.width, box.height],
                "area": box.area,
                "iscrowd": int(box.crowd),
            }
            if box.mask is not None:
                annotation["segmentation"] = box.mask
            annotations.append(annotation)
    return {
        "images": [
            {"id": row.id, "file_name": row.file.name, "width": row.width, "height": row.height} for row in images.rows
        ],
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, start=1)],
    }
