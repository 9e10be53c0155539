"""Index masks: the class indices that a file stores, and the check of a part's masks before a run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from stillroom.images.decode import exif_orientation, open_image, upright

IGNORED = 255
"""The label of unlabelled pixels."""
_INDEX_MODES = ("1", "L", "LA", "P", "I", "I;16", "I;16B", "I;16L")
_SPREAD = {"L;2": 85, "L;4": 17}
"""Pillow spreads grey of 2 and 4 bits over 0 to 255: its name of the file's pixels -> the distance of two indices."""
_SAVE = "save one index per pixel, as grey or palette PNG of 8 bits"


@dataclass(frozen=True, kw_only=True)
class PartMasks:
    """What the masks of one part, training or validation, hold.

    Args:
        count: of masks.
        pixels: of each label that occurs, over all masks.
        only_0_and_255: masks that hold these two labels and no other.
        turned: images that their EXIF tag turns.
    """

    count: int
    pixels: Counter[int]
    only_0_and_255: int
    turned: int


def read_labels(file: Path) -> Shaped[np.ndarray, "h w"]:
    """Read the numbers that a mask stores, in its own bit depth, as the mask is seen.

    Raises:
        BrokenImageError: a file that cannot be read.
        ValueError: one whose pixels are not single numbers.
    """
    with open_image(file) as opened:
        mode, kind = opened.mode, opened.format
        raw: Any = opened.tile[0][3] if opened.tile else ""
        pixels = np.asarray(upright(opened, exif_orientation(opened)))
    if kind == "JPEG":
        raise ValueError(f"{file} is a JPEG, whose compression changes indices: {_SAVE}")
    if mode not in _INDEX_MODES:
        raise ValueError(f"{file} has mode {mode}, not one index per pixel: map its colours to indices, and {_SAVE}")
    if mode == "LA":
        if pixels[..., 1].min() < 255:
            raise ValueError(f"{file} has transparent pixels: give them a label, 255 if they have none, and {_SAVE}")
        pixels = pixels[..., 0]
    spread = _SPREAD.get(raw if isinstance(raw, str) else raw[0])  # TIFF's has more fields
    return pixels // spread if spread else pixels


def read_mask(file: Path, *, zero_ignored: bool = False) -> UInt8[np.ndarray, "h w"]:
    """Read the class indices of a mask that `check_masks` has seen.

    Args:
        file: of the mask.
        zero_ignored: label 0 is not a class but unlabelled, label 1 is the first class (ADE20K).

    Raises:
        ValueError: see `read_labels`.
    """
    labels = read_labels(file).astype(np.uint8)
    return np.where(labels == IGNORED, IGNORED, labels - 1).astype(np.uint8) if zero_ignored else labels


def check_masks(pairs: Sequence[tuple[Path, Path]], num_labels: int) -> PartMasks:
    """Check every mask of a part: it can be read, it has the size of its image, and only labels of classes, or 255.

    Args:
        pairs: (image, mask) files.
        num_labels: a mask may hold the labels from 0 up to, not including, this one.

    Raises:
        ValueError: with the first mask that does not fit, and how many there are.
    """
    wrong: list[str] = []
    pixels: Counter[int] = Counter()
    only_0_and_255 = turned = 0
    for image, mask in pairs:
        try:
            of_mask, is_turned = check_pair(image, mask, num_labels)
        except ValueError as error:
            wrong.append(str(error))
            continue
        pixels.update(of_mask)
        only_0_and_255 += of_mask.keys() == {0, IGNORED}
        turned += is_turned
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(pairs)} masks do not fit; {wrong[0]}")
    if pixels.keys() == {IGNORED}:
        raise ValueError(f"no pixel of the {len(pairs)} masks beside {pairs[0][1]} is labelled: all are {IGNORED}")
    return PartMasks(count=len(pairs), pixels=pixels, only_0_and_255=only_0_and_255, turned=turned)


def check_pair(image: Path, mask: Path, num_labels: int) -> tuple[dict[int, int], bool]:
    """Check a mask against its image: the pixels of each of its labels, and whether an EXIF tag turns the image.

    Image and mask are both taken as they are seen, as viewers and labelling tools show them. Where the tag swaps the
    sides, the size tells a mask that was drawn on the stored pixels; where it does not, nothing does.

    Raises:
        ValueError: what is wrong, with the file.
    """
    labels = read_labels(mask)
    with open_image(image) as opened:
        stored, orientation = opened.size, exif_orientation(opened)
    seen = stored[::-1] if orientation >= 5 else stored
    size = labels.shape[::-1]
    if size != seen:
        sentence = f"{mask} is {size[0]} x {size[1]} px, its image {seen[0]} x {seen[1]}"
        if size == stored:
            sentence += f" as it is seen: {image} is turned by its EXIF tag, and its mask is not; save both upright"
        raise ValueError(sentence)
    pixels = count_labels(labels)
    if stray := sorted(label for label in pixels if not (0 <= label < num_labels or label == IGNORED)):
        named = (
            f"label{'s' if len(stray) > 1 else ''} {', '.join(map(str, stray[:5]))}{', ...' if len(stray) > 5 else ''}"
        )
        num = sum(pixels[label] for label in stray)
        raise ValueError(
            f"{mask} holds {named} in {num} of its {labels.size} pixels: classes are 0 to {num_labels - 1}, and 255 is "
            "unlabelled"
        )
    return pixels, orientation != 1


def count_labels(labels: Shaped[np.ndarray, "h w"]) -> dict[int, int]:
    """Count the pixels of each label that occurs."""
    if labels.dtype.itemsize > 1:
        values, counts = np.unique(labels, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))
    histogram = Image.fromarray(labels.astype(np.uint8)).histogram()  # in a fraction of np.unique's time and memory
    return {label: count for label, count in enumerate(histogram) if count}


def absent_classes(classes: Sequence[str], masks: PartMasks, first: int = 0) -> tuple[str, ...]:
    """List the classes without a pixel in the masks of a part; `first` is the label of the first class."""
    return tuple(name for label, name in enumerate(classes, start=first) if not masks.pixels[label])


def check_classes(
    root: Path, classes: Sequence[str], masks: Mapping[str, PartMasks], *, first: int = 0, partial: bool = False
) -> tuple[str, ...]:
    """Check that every class can be learned, and that 255 does not stand for one.

    Args:
        root: folder of the data set.
        classes: names, in the order of the labels.
        masks: of the parts `train` and `val`.
        first: label of the first class.
        partial: accept classes that do not occur in `train`.

    Returns:
        Notes, one sentence each: what is not an error, and may be one.

    Raises:
        ValueError: a part that holds 0 and 255 only; a class without a pixel in `train`.
    """
    notes = []
    for part, of_part in masks.items():
        if of_part.pixels.keys() == {0, IGNORED} and first == 0:
            raise ValueError(
                f"the {of_part.count} {part} masks in {root} hold 0 and 255 only, and 255 is no class but unlabelled "
                f"pixels: if white is {classes[1]!r}, write 1 for it"
            )
        if of_part.only_0_and_255 and len(classes) == 2:
            notes.append(
                f"{of_part.only_0_and_255} of {of_part.count} {part} masks hold 0 and 255 only, and 255 is unlabelled: "
                f"if it is {classes[1]!r} there, write 1 for it"
            )
        if of_part.turned:
            notes.append(
                f"{of_part.turned} of {of_part.count} {part} images are turned by their EXIF tag: they and their masks "
                "are taken as they are seen"
            )
    if absent := absent_classes(classes, masks["train"], first):
        sentence = f"{len(absent)} of {len(classes)} classes have no pixel in the train masks: {', '.join(absent)}"
        if not partial:
            ignored = " (255 is no class, but unlabelled pixels)" if masks["train"].pixels[IGNORED] else ""
            raise ValueError(
                f"{root}: {sentence}{ignored}; add images of them, or take them out and renumber the labels"
            )
        notes.append(f"{sentence}; they are not learned")
    if absent := absent_classes(classes, masks["val"], first):
        notes.append(
            f"{len(absent)} of {len(classes)} classes have no pixel in the val masks: {', '.join(absent)}; each counts "
            "as 0 in mIoU if it is predicted anywhere, and is left out of the mean otherwise"
        )
    return tuple(notes)
