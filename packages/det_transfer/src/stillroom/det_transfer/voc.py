"""Pascal VOC's format: one XML per image, and lists of them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from stillroom.backbone.image_files import EXTENSIONS
from stillroom.det_transfer.annotations import Annotated, Box, Images, check_boxes, check_files, refuse_doubles
from stillroom.det_transfer.config import OnBadBox

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class Listed:
    """One list of a VOC folder: ROOT/ImageSets/Main/NAME.txt."""

    root: Path
    name: str

    @property
    def file(self) -> Path:
        return self.root / "ImageSets" / "Main" / f"{self.name}.txt"

    def names(self) -> list[str]:
        """The images, without suffix.

        Raises:
            ValueError: no list, an empty one, or an image twice.
        """
        for path in (self.root / "JPEGImages", self.root / "Annotations", self.file):
            if not path.exists():
                raise ValueError(f"there is no {path}: {self.root} is not laid out as VOC is")
        lines = self.file.read_text(encoding="utf-8-sig").splitlines()
        names = [self.name_of(line.strip()) for line in lines if line.strip()]
        if not names:
            raise ValueError(f"{self.file} lists no image")
        refuse_doubles(names, "images", self.file)
        return names

    def name_of(self, line: str) -> str:
        """The image of a line; the lists of one class say behind it whether it is there: 1, 0 or -1."""
        whole = (self.root / "Annotations" / f"{line}.xml").is_file()
        return line if whole else re.sub(r"\s+-?[01]$", "", line)


def find_classes(listed: Listed) -> tuple[str, ...]:
    """The names of all objects of a list, sorted.

    Raises:
        ValueError: see `parse`; none.
    """
    found = set()
    for name in listed.names():
        root = parse(listed.root / "Annotations" / f"{name}.xml")
        found |= {(entry.findtext("name") or "").strip() for entry in root.iter("object")}
    if not found - {""}:
        raise ValueError(f"the XML files of {listed.file} name no object")
    return tuple(sorted(found - {""}))


def read_voc(lists: Sequence[Listed], classes: Sequence[str], on_bad_box: OnBadBox) -> Images:
    """The images of lists, with their boxes.

    VOC counts pixels from 1 and its boxes include their last pixel: here the left and upper edge are one less.

    Raises:
        ValueError: files that are missing or no XML of VOC's, unknown classes, bad boxes; each by name.
    """
    rows: list[Annotated] = []
    for listed in lists:
        for name in listed.names():
            rows.append(read_one(listed.root, name, len(rows) + 1, classes))
    source = lists[0].file
    check_files(rows, source)
    kept, left_out = check_boxes(rows, source, on_bad_box)
    return Images(root=lists[0].root if len(lists) == 1 else lists[0].root.parent, rows=tuple(kept),
                  left_out=tuple(left_out))  # fmt: skip


def read_one(root: Path, name: str, number: int, classes: Sequence[str]) -> Annotated:
    """One image.

    Raises:
        ValueError: see `read_voc`.
    """
    xml = root / "Annotations" / f"{name}.xml"
    parsed = parse(xml)
    boxes = []
    for place, entry in enumerate(parsed.iter("object"), start=1):
        kind = (entry.findtext("name") or "").strip()
        if kind not in classes:
            told = ", ".join(classes)
            raise ValueError(f"{xml} holds a {kind!r}, which is no class: {told} (--layout voc: of the training list)")
        left, upper, right, lower = (number_of(entry, f"bndbox/{key}", xml) for key in ("xmin", "ymin", "xmax", "ymax"))
        x, y, width, height = left - 1, upper - 1, right - left + 1, lower - upper + 1
        if right <= left or lower <= upper:  # a point or a line in VOC's own count, though one pixel is inside
            width = height = 0.0
        boxes.append(
            Box(
                x=x, y=y, width=width, height=height, label=classes.index(kind), area=width * height,
                difficult=(entry.findtext("difficult") or "0").strip() == "1", name=f"{kind} {place}",
            )
        )  # fmt: skip
    images = root / "JPEGImages"
    known = [form for suffix in (".jpg", *sorted(EXTENSIONS)) for form in (suffix, suffix.upper())]
    suffixes = [suffix for suffix in known if (images / f"{name}{suffix}").is_file()]
    file = images / f"{name}{suffixes[0] if suffixes else '.jpg'}"
    sides = [int(number_of(parsed, f"size/{key}", xml)) for key in ("width", "height")]
    return Annotated(id=number, file=file, width=sides[0], height=sides[1], boxes=tuple(boxes))


def parse(xml: Path) -> ElementTree.Element:
    """The root of an XML file.

    Raises:
        ValueError: no such file, or no XML.
    """
    if not xml.is_file():
        raise ValueError(f"there is no {xml}, though its image is listed")
    try:
        return ElementTree.parse(xml).getroot()
    except (ElementTree.ParseError, LookupError) as error:  # the latter of an encoding that nobody knows
        raise ValueError(f"{xml} is no XML: {error}") from error


def number_of(element: ElementTree.Element, path: str, xml: Path) -> float:
    """The number at a place.

    Raises:
        ValueError: none there.
    """
    text = element.findtext(path)
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{xml} holds {text!r} as {path}: a number was expected")
    return number
