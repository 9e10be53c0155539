"""Images with boxes, in memory as COCO's format says it, and what can be wrong with them."""

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
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as rle

from stillroom.backbone import ImageFiles
from stillroom.backbone.images import has_exif_orientation
from stillroom.backbone.results import DatasetRecord
from stillroom.det_transfer.config import OnBadBox

TOLERANCE = 1.0
"""How far a box may reach beyond its image, pixels: rounding of other tools. It is cut there to be learned from."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """One object.

    Args:
        x, y, width, height: pixels from the left and upper edge; the pixel (0, 0) covers 0 to 1.
        label: index of its class.
        crowd: the box holds many objects of the class; nothing is learned from it, and finding it is no mistake.
        difficult: VOC's word for an object that need not be found.
        area: of the object, pixels; of the box where nobody says.
        mask: COCO's compressed RLE; None where there is none.
        name: what an error calls it.
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
class Annotated:
    """An image and its boxes.

    Args:
        id: of the image; COCO's, or its place.
        file: of the image.
        width, height: pixels.
        boxes: may be none.
    """

    id: int
    file: Path
    width: int
    height: int
    boxes: tuple[Box, ...] = ()

    @property
    def wanted(self) -> tuple[Box, ...]:
        """What is learned from: all but crowds, as far as the image goes."""
        return tuple(cut(box, self) for box in self.boxes if not box.crowd)

    @property
    def corners(self) -> Float[np.ndarray, "n 4"]:
        """Left, upper, right, lower edge of each wanted box, pixels."""
        rows = [(b.x, b.y, b.x + b.width, b.y + b.height) for b in self.wanted]
        return np.asarray(rows, dtype=np.float32).reshape(-1, 4)

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        """Class of each wanted box."""
        return np.asarray([box.label for box in self.wanted], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of one part of a data set.

    Args:
        root: folder that holds them all.
        rows: the images.
        left_out: what was left out of them, one sentence each.
    """

    root: Path
    rows: tuple[Annotated, ...]
    left_out: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def record(self) -> DatasetRecord:
        """For results.json; the fingerprint is that of the images and of their boxes."""
        digest = ImageFiles(self.root, tuple(row.file for row in self.rows)).fingerprint
        boxes = [
            (row.id, b.label, b.x, b.y, b.width, b.height, b.area, b.crowd, b.difficult, b.mask and b.mask["counts"])
            for row in self.rows
            for b in row.boxes
        ]
        told = sha256(f"{digest} {boxes}".encode()).hexdigest()
        return DatasetRecord(path=str(self.root), count=len(self.rows), fingerprint=told)

    @property
    def num_boxes(self) -> int:
        return sum(len(row.boxes) for row in self.rows)

    @property
    def without_masks(self) -> list[str]:
        """What an error calls the boxes that have none."""
        return [f"{box.name} of {row.file}" for row in self.rows for box in row.boxes if box.mask is None]

    def filled(self) -> "Images":
        """Without the images that have nothing to learn from."""
        return replace(self, rows=tuple(row for row in self.rows if not all(box.crowd for box in row.boxes)))


def encode(mask: Any, width: int, height: int) -> dict[str, Any]:
    """COCO's polygons or uncompressed RLE as one compressed RLE."""
    if isinstance(mask, list):
        return rle.merge(rle.frPyObjects(mask, height, width))
    return rle.frPyObjects(mask, height, width) if isinstance(mask["counts"], list) else mask


def fault_of_mask(mask: Any, width: int, height: int) -> str | None:
    """What is wrong with a mask in COCO's format, or None."""
    if isinstance(mask, list):
        good = all(isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in mask)
        good = good and all(isinstance(v, int | float) and math.isfinite(v) for part in mask for v in part)
        return None if good else "is no list of polygons, each of three points or more"
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
    """The lengths that COCO's compressed RLE says.

    Each is a number of 5 bits a character, the lowest first, less 48; bit 6 says that more follow, the highest of the
    last five is the sign. From the fourth on it is the difference to the length two before (COCO API, maskApi.c).
    pycocotools reads a string that ends early as what memory holds by chance.
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


def refuse_doubles(values: Iterable[object], what: str, source: Path) -> None:
    """Refuse an id or a name that stands twice.

    Raises:
        ValueError: with the first of them, and how many there are.
    """
    if twice := [value for value, many in Counter(values).items() if many > 1]:
        raise ValueError(f"{source} has {len(twice)} {what} twice, the first is {twice[0]!r}")


def check_files(rows: Sequence[Annotated], source: Path) -> None:
    """Look whether every image is there, and is as large as its boxes think.

    Raises:
        ValueError: with the first that is missing, broken or of another size, and how many there are.
    """
    missing = [row.file for row in rows if not row.file.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(rows)} images of {source} are not there, the first is {missing[0]}")
    wrong = []
    for row in rows:
        try:
            with Image.open(row.file) as opened:
                if has_exif_orientation(opened):
                    wrong.append(f"{row.file} is turned by its EXIF tag, its boxes are not: save it upright")
                elif opened.size != (row.width, row.height):
                    found = f"{opened.width} x {opened.height}"
                    wrong.append(f"{row.file} is {found} px, {source} says {row.width} x {row.height}")
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            wrong.append(f"{row.file} cannot be read as an image: {error}")
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(rows)} images do not fit; {wrong[0]}")


def check_boxes(
    rows: Sequence[Annotated], source: Path, on_bad_box: OnBadBox, known: Collection[str] = ()
) -> tuple[list[Annotated], list[str]]:
    """Find boxes without area or outside of their image, by more than a pixel.

    Args:
        rows: the images.
        source: of the boxes.
        on_bad_box: refuse or leave out such boxes.
        known: names of those that are left out in any case.

    Returns:
        The images, and a sentence for every box that was left out.

    Raises:
        ValueError: such a box, where they are refused, and how many there are.
    """
    kept, bad, strange = [], [], []
    for row in rows:
        boxes = []
        for box in row.boxes:
            if fault := fault_of(box, row):
                bad.append(f"{box.name} of {row.file.name} {fault}")
                strange += [] if box.name in known else [bad[-1]]
            else:
                boxes.append(box)
        kept.append(replace(row, boxes=tuple(boxes)))
    if strange and on_bad_box == "refuse":
        words = "; ".join(strange[:3])
        raise ValueError(f"{source} has {len(strange)} bad boxes: {words}: mend it, or say --on-bad-box skip")
    return kept, bad


def fault_of(box: Box, image: Annotated) -> str | None:
    """What is wrong with a box, or None."""
    values = (box.x, box.y, box.width, box.height)
    if not np.isfinite(values).all():
        return f"is no box: {values}"
    if box.width <= 0 or box.height <= 0:
        return f"has no area: {box.width:g} x {box.height:g} px"
    right, lower = box.x + box.width - image.width, box.y + box.height - image.height
    if max(-box.x, -box.y, right, lower) > TOLERANCE:
        return f"reaches {max(-box.x, -box.y, right, lower):g} px beyond the image"
    left, upper, right, lower = replace(image, boxes=(replace(box, crowd=False),)).corners[0]
    return None if left < right and upper < lower else "has no area inside the image"


def cut(box: Box, image: Annotated) -> Box:
    """A box as far as its image goes."""
    left, upper = max(box.x, 0.0), max(box.y, 0.0)
    right, lower = min(box.x + box.width, image.width), min(box.y + box.height, image.height)
    if (left, upper, right, lower) == (box.x, box.y, box.x + box.width, box.y + box.height):
        return box
    return replace(box, x=left, y=upper, width=right - left, height=lower - upper)


def as_coco(images: Images, classes: Sequence[str]) -> dict[str, Any]:
    """COCO's format, for pycocotools: categories are 1 and up in the order of the classes, annotations likewise."""
    annotations: list[Mapping[str, Any]] = []
    for row in images.rows:
        for box in row.boxes:
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1, "image_id": row.id, "category_id": box.label + 1,
                "bbox": [box.x, box.y, box.width, box.height], "area": box.area, "iscrowd": int(box.crowd),
            }  # fmt: skip
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
