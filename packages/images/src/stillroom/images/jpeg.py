"""JPEG by simplejpeg (libjpeg-turbo), where it is installed: Pillow's pixels, to the bit, in less time.

Not taken: torchcodec 0.17, which gives the same bits in the same time, needs torch 2.11 and decodes no JPEG to a
smaller size; PyTurboJPEG, whose wheel lacks the library.
"""

from functools import cache
from importlib import metadata
from types import ModuleType

import numpy as np
import PIL
from jaxtyping import UInt8
from PIL import Image

_COLOURS = ("YCbCr", "Gray")
_EXIF, _SCAN = 0xE1, 0xDA
"""JPEG markers: the segment that may hold EXIF's tags, and the one that the pixels follow."""


@cache
def simplejpeg() -> ModuleType | None:
    """The library, or None where it is not installed."""
    try:
        import simplejpeg  # noqa: PLC0415  # an extra
    except ImportError:
        return None
    return simplejpeg


@cache
def decoder() -> str:
    """What decodes JPEGs here, with its version: for cache keys and results."""
    if simplejpeg() is None:
        return f"pillow {PIL.__version__}"
    return f"simplejpeg {metadata.version('simplejpeg')}"


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG, pixels; None if Pillow must decode it: CMYK, damaged, too large, another format."""
    library = simplejpeg()
    if library is None or data[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colours, _ = library.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in _COLOURS or width * height > (Image.MAX_IMAGE_PIXELS or np.inf):
        return None
    return width, height


def decode_jpeg(data: bytes, size: tuple[int, int], reduce: int = 1) -> UInt8[np.ndarray, "h w 3"] | None:
    """Decode a JPEG as RGB; None if it is damaged, for Pillow to judge.

    Args:
        data: a file of which `jpeg_size` knows the size.
        size: its width and height.
        reduce: decode to 1/1, 1/2, 1/4 or 1/8 of the size, rounded up.
    """
    library = simplejpeg()
    assert library is not None, "jpeg_size has found a size"
    width, height = (-(-side // reduce) for side in size)
    try:
        return library.decode_jpeg(data, "RGB", min_height=height, min_width=width, min_factor=1)
    except ValueError:  # what damage it finds, to be told in Pillow's words
        return None


def has_exif(data: bytes) -> bool:
    """Whether a JPEG has a segment of EXIF's tags; it is not parsed."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != _SCAN:
        if data[position + 1] == _EXIF and data[position + 4 : position + 8] == b"Exif":
            return True
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False
