"""Pascal VOC's format: one XML per image, and lists of them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from stillroom.det_transfer.annotations import (
    AnnotatedImage,
    Box,
    Images,
    check_boxes,
    check_files,
    check_unit,
    refuse_duplicates,
)
from stillroom.det_transfer.config import OnBadBox, VocBase
from stillroom.images.formats import image_suffixes

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


@dataclass(frozen=True)
class ImageList:
    """A list of images in a VOC folder: ROOT/ImageSets/Main/NAME.txt."""

    root: Path
    name: str

    @property
    def file(self) -> Path:
        """The list's file."""
        return self.root / "ImageSets" / "Main" / f"{self.name}.txt"

    def names(self) -> list[str]:
        """Read the names of the images, without suffix.

        Raises:
            ValueError: a missing or empty list, or a duplicate image.
        """
        for path in (self.root / "JPEGImages", self.root / "Annotations", self.file):
            if not path.exists():
                raise ValueError(f"there is no {path}: {self.root} is not in VOC's layout")
        lines = self.file.read_text(encoding="utf-8-sig").splitlines()
        names = [self.name_of(line.strip()) for line in lines if line.strip()]
        if not names:
            raise ValueError(f"{self.file} lists no image")
        refuse_duplicates(names, "images", self.file)
        return names

    def name_of(self, line: str) -> str:
        """The image of a line; in the list of a class, 1, 0 or -1 after it tells whether the class occurs."""
        is_name = (self.root / "Annotations" / f"{line}.xml").is_file()
        return line if is_name else re.sub(r"\s+-?[01]$", "", line)


def read_classes(image_list: ImageList) -> tuple[str, ...]:
    """Collect the class names that occur in the images of a list, sorted.

    Raises:
        ValueError: see `parse_xml`; no object at all.
    """
    names = set()
    for name in image_list.names():
        root = parse_xml(image_list.root / "Annotations" / f"{name}.xml")
        names |= {(entry.findtext("name") or "").strip() for entry in root.iter("object")}
    if not names - {""}:
        raise ValueError(f"the XML files of {image_list.file} name no object")
    return tuple(sorted(names - {""}))


def read_voc(
    lists: Sequence[ImageList], classes: Sequence[str], on_bad_box: OnBadBox, base: VocBase | None = None
) -> Images:
    """Read the images of lists with their boxes.

    VOC counts pixels from 1 and its boxes include their last pixel: here the left and upper edge are one less. Other
    tools write the edges themselves, from 0.

    Args:
        lists: of images.
        classes: names, in the order of the labels.
        on_bad_box: refuse or leave out boxes without area or outside of their image.
        base: the number of the first pixel; None: 1, with a note where a file contradicts it.

    Raises:
        ValueError: files that are missing or not VOC's XML, unknown classes, bad boxes; each by name.
    """
    rows: list[AnnotatedImage] = []
    for image_list in lists:
        for name in image_list.names():
            rows.append(read_image(image_list.root, name, len(rows) + 1, classes, 1 if base is None else base))
    source = lists[0].file
    check_files(rows, source)
    notes = check_unit(rows, source)
    zeros = [row.file.stem for row in rows if any(min(box.x, box.y) < 0 for box in row.boxes)]
    if base is None and zeros:
        notes.append(
            f"{len(zeros)} of {len(rows)} XML files of {source} have a coordinate below 1, such as {zeros[0]}.xml: VOC "
            f"counts pixels from 1. Pass --voc-base 0 if the boxes count from 0, else --voc-base 1"
        )
    kept, left_out = check_boxes(rows, source, on_bad_box)
    root = lists[0].root if len(lists) == 1 else lists[0].root.parent
    return Images(root=root, rows=tuple(kept), left_out=tuple(left_out), notes=tuple(notes))


def read_image(root: Path, name: str, number: int, classes: Sequence[str], base: VocBase) -> AnnotatedImage:
    """Read the annotation of one image.

    Args:
        root: the VOC folder.
        name: of the image, without suffix.
        number: its id here; VOC has none.
        classes: names, in the order of the labels.
        base: see `read_voc`.

    Raises:
        ValueError: see `read_voc`.
    """
    xml = root / "Annotations" / f"{name}.xml"
    parsed = parse_xml(xml)
    boxes = []
    for object_number, entry in enumerate(parsed.iter("object"), start=1):
        kind = (entry.findtext("name") or "").strip()
        if kind not in classes:
            known = ", ".join(classes)
            raise ValueError(
                f"{xml} holds a {kind!r}, which is not a class: expected {known} "
                "(under --layout voc, the classes of the training list)"
            )
        edges = ("xmin", "ymin", "xmax", "ymax")
        left, upper, right, lower = (read_number(entry, f"bndbox/{edge}", xml) for edge in edges)
        x, y, width, height = left - base, upper - base, right - left + base, lower - upper + base
        if right <= left or lower <= upper:  # a point or a line by VOC's own count, though it covers a pixel
            width = height = 0.0
        boxes.append(
            Box(
                x=x,
                y=y,
                width=width,
                height=height,
                label=classes.index(kind),
                area=width * height,
                difficult=(entry.findtext("difficult") or "0").strip().lower() in ("1", "true"),
                name=f"{kind} {object_number}",
            )
        )
    images = root / "JPEGImages"
    suffixes = (".jpg", ".jpeg", ".png", *sorted(image_suffixes()))
    candidates = (images / f"{name}{form}" for suffix in suffixes for form in (suffix, suffix.upper()))
    file = next((candidate for candidate in candidates if candidate.is_file()), images / f"{name}.jpg")
    sides = [int(read_number(parsed, f"size/{side}", xml)) for side in ("width", "height")]
    if min(sides) < 1:
        raise ValueError(f"{xml} states an image of {sides[0]} x {sides[1]} px: write the size of {file}")
    return AnnotatedImage(id=number, file=file, width=sides[0], height=sides[1], boxes=tuple(boxes))


def parse_xml(xml: Path) -> ElementTree.Element:
    """Parse an XML file and return its root.

    Raises:
        ValueError: no such file, or not valid XML.
    """
    if not xml.is_file():
        raise ValueError(f"there is no {xml}, though its image is listed")
    try:
        return ElementTree.parse(xml).getroot()
    except (ElementTree.ParseError, LookupError) as error:  # LookupError: an unknown encoding
        raise ValueError(f"{xml} is not valid XML: {error}") from error


def read_number(element: ElementTree.Element, path: str, xml: Path) -> float:
    """Read the number at a path below an element.

    Raises:
        ValueError: there is none.
    """
    text = element.findtext(path)
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{xml} holds {text!r} as {path}, expected a number")
    return number
