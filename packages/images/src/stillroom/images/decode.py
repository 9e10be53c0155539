"""Decoding images."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageFile

from stillroom.images.formats import image_formats


class BrokenImageError(ValueError):
    """An image file that cannot be decoded."""


_BITS, _PHOTOMETRIC, _LARGEST, _PLANES, _FORMAT, _BLACK, _WHITE = 258, 262, 281, 284, 339, 340, 341
# in TIFF 6.0: BitsPerSample, PhotometricInterpretation, MaxSampleValue, PlanarConfiguration, SampleFormat,
# SMinSampleValue and SMaxSampleValue
_DIM = 16  # an image whose lightest sample is below white / 16 is black to the eye, and to a net
_TOO_DIM = (
    "its lightest sample is {high:g} where white is {white:g}, so it would be read as black: "
    "scale its samples up to white (10 or 12 bits in a wider type?)"
)
_ROWS = 256
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientations but 1, upright, and what turns the stored pixels as they are to be seen."""


@contextmanager
def open_image(image: Path | bytes, name: str | None = None) -> Iterator[ImageFile.ImageFile]:
    """Open an image: its header now, its pixels by `load`; both may raise.

    Args:
        image: a file, or the bytes of one.
        name: what an error calls it; None: the path.

    Raises:
        BrokenImageError: damaged, not an image, or larger than Pillow's decompression limit.
    """
    name = str(image) if name is None else name
    try:
        with Image.open(BytesIO(image) if isinstance(image, bytes) else image, formats=image_formats()) as opened:
            yield opened
    except Image.DecompressionBombError as error:
        raise BrokenImageError(f"{name} cannot be read as an image: {error}; shrink it, or leave it out") from error
    except Exception as error:  # damaged bytes let Pillow's decoders raise almost any class
        reason = str(error) or type(error).__name__
        raise BrokenImageError(f"{name} cannot be read as an image: {reason}") from error


def load_image(
    image: Path | bytes, name: str | None = None, reduce: int = 1, *, as_stored: bool = False
) -> Image.Image:
    """Decode one image (the first of several in a file) as 8-bit RGB from any mode: grey, palette, CMYK, Lab, ...

    It is turned as its EXIF tag says, as viewers and labelling tools show it. What is transparent, wholly or in part,
    is put on white. Deeper samples are scaled by the range that their file states, see `_scaled`.

    Args:
        image, name: see `open_image`.
        reduce: decode a JPEG to 1/2, 1/4 or 1/8 of its size, rounded up; other formats are decoded whole.
        as_stored: do not obey the EXIF tag, as in published protocols.

    Raises:
        BrokenImageError: see `open_image`; samples whose range is not known, or that would be read as black.
    """
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "truncated images must be found, not read as grey"
    with open_image(image, name) as opened:
        orientation = 1 if as_stored else exif_orientation(opened)
        if reduce > 1 and opened.format in ("JPEG", "MPO") and opened.mode in ("RGB", "L"):
            opened.draft(None, (opened.width // reduce, opened.height // reduce))
        return upright(_as_rgb(opened), orientation)


def _as_rgb(opened: ImageFile.ImageFile) -> Image.Image:
    """The pixels of an opened image as 8-bit RGB; see `load_image`."""
    raw = str(opened.tile[:1]).replace("BGR;16", "")  # which is 5, 6 and 5 bits
    deep = ";16" in raw  # of colours with 16 bits, Pillow keeps the upper 8
    tags = getattr(opened, "tag_v2", {})
    if tags.get(_PLANES) == 2 and max(tags.get(_BITS, (8,))) > 8:
        raise ValueError("its 16-bit channels lie in separate planes, which Pillow misreads: save them interleaved")
    opened.load()
    image: Image.Image = opened
    if image.mode in ("I", "F") or image.mode.startswith("I;16") or _is_signed(tags):
        return Image.fromarray(_scaled(opened)).convert("RGB")
    if deep and 0 < (high := int(np.asarray(image.convert("RGB")).max())) < 256 // _DIM:
        raise ValueError(_TOO_DIM.format(high=high << 8, white=65535))
    if image.mode in ("La", "RGBa"):  # multiplied by alpha
        image = image.convert(image.mode.upper())
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _scaled(image: ImageFile.ImageFile) -> UInt8[np.ndarray, "h w"]:
    """Scale grey samples of 16, 32 or signed 8 bits to 8 bits, from black to white of their type or of their TIFF tags.

    White of an integer type is its largest value (4095 for 12 bits in a TIFF), of floats it is 1.

    Raises:
        ValueError: a type whose range is not known, samples outside the range, or integers that use so little of it
            that they would be black: usually 12 bits in 16.
    """
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    bits, signed = int(tags.get(_BITS, (16,))[0]), _is_signed(tags)
    if image.format not in ("PNG", "PPM", "TIFF", "JPEG2000"):
        raise ValueError(f"nothing says which of its {image.mode} samples is white: save it as PNG")
    if bits == 32 and not signed and image.mode == "I":
        values = values.view(np.uint32)  # as which Pillow's int32 were read
    if bits == 8:
        values = values.view(np.int8)
    black, white = 0.0, 1.0 if image.mode == "F" else 2.0 ** (bits - signed) - 1
    low, high = float(values.min()), float(values.max())
    if stated := _BLACK in tags and _WHITE in tags:
        black, white = (float(np.ravel(tags[tag])[0]) for tag in (_BLACK, _WHITE))
    margin = 1e-6 * (white - black)
    remedy = "rescale them"
    if image.format == "TIFF":
        remedy += ", or state their range in the TIFF tags SMinSampleValue and SMaxSampleValue"
    if not (white > black and black - margin <= low and high <= white + margin):  # not for NaN either
        raise ValueError(
            f"its samples are {low:g} to {high:g}, expected {black:g} (black) to {white:g} (white): {remedy}"
        )
    largest = int(tags.get(_LARGEST, (white,))[0])
    if not stated and high <= largest < white and (largest + 1).bit_count() == 1:  # a number of bits, no statistic
        raise ValueError(f"its MaxSampleValue is {largest} where white is {white:g}: {remedy}")
    if not stated and 0 < high < white / _DIM:
        raise ValueError(_TOO_DIM.format(high=high, white=white))
    scaled = np.empty(values.shape, dtype=np.uint8)
    for rows in range(0, len(values), _ROWS):  # float64 of few rows at once
        part = (values[rows : rows + _ROWS] - black) * (255 / (white - black))
        scaled[rows : rows + _ROWS] = (part + 1e-6).clip(0, 255)
    if tags.get(_PHOTOMETRIC) == 0:  # white is 0, which Pillow leaves as it is
        scaled = 255 - scaled
    if (clear := image.info.get("transparency")) is not None:
        scaled[values == clear] = 255
    return scaled


def _is_signed(tags: Mapping[int, Any]) -> bool:
    """Whether TIFF tags say that samples are signed integers."""
    return tags.get(_FORMAT, (1,))[0] == 2


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn stored pixels as EXIF's `orientation`, 1 to 8, says."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def exif_orientation(opened: Image.Image) -> int:
    """EXIF's orientation of an image, 2 to 8, or 1: upright, no tag, or a malformed one. Reads the header only."""
    if opened.format == "PNG" and "exif" not in opened.info:  # it may follow the pixels, where libraries do not look
        return 1
    if opened.format == "TIFF":  # Pillow itself turns its pixels
        return 1
    try:
        value = opened.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001  # Pillow's parser has no error of its own: a malformed block ends in any class
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def has_exif_orientation(opened: Image.Image) -> bool:
    """Whether an EXIF tag rotates or flips an image: some libraries obey it, others do not. Reads the header only."""
    return exif_orientation(opened) != 1
