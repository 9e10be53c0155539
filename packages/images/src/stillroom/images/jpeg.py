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
_APP1, _SCAN = b"\xe1", b"\xda"
"""JPEG markers: the segments that may hold EXIF's tags or XMP, and the one that the pixels follow."""
_SEGMENTS = frozenset(bytes([marker]) for marker in (*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE)) - {b"\xc8"}
"""Markers that are followed by a size, to Pillow too."""
_XMP = b"tiff:Orientation"  # as which Pillow reads it there


@cache
def simplejpeg() -> ModuleType | None:
    """The library, or None where it is not installed."""
    try:
        import simplejpeg  # noqa: PLC0415  # an extra
    except ImportError:
        return None
    return simplejpeg


def pillow() -> str:
    """Pillow, with its version."""
    return f"pillow {PIL.__version__}"


@cache
def decoder() -> str:
    """What decodes JPEGs here, with its version: for cache keys and results."""
    if simplejpeg() is None:
        return pillow()
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


def may_be_turned(data: bytes) -> bool:
    """Whether a JPEG may hold an orientation, in EXIF's tags or in XMP; neither is parsed.

    True too for a header that is not a plain chain of segments: Pillow skips what does not belong there, and goes on.
    """
    position = 2
    while data[position : position + 1] == b"\xff":
        marker, size = data[position + 1 : position + 2], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == b"\xff":  # fill
            position += 1
            continue
        if marker == _SCAN:
            return False
        if marker not in _SEGMENTS or size < 2:
            return True
        begin, position = position + 4, position + 2 + size
        if marker == _APP1 and (data[begin : begin + 4] == b"Exif" or data.find(_XMP, begin, position) >= 0):
            return True
    return True
