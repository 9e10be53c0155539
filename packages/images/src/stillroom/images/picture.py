"""An encoded image that views draw their crops from before it is decoded, and that is decoded once for all of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from stillroom.images.decode import exif_orientation, load_image, open_image, upright
from stillroom.images.jpeg import decode_jpeg, decoder, jpeg_size, may_be_turned, pillow

Pixels = UInt8[np.ndarray, "h w 3"]


class Picture:
    """An image whose size is known, and whose pixels are decoded when a view asks for them, once.

    Args:
        size: width and height, pixels.
        decode: gives the pixels at 1/1, 1/2, 1/4 or 1/8 of the size, or, where that cannot be had, at 1/1.
    """

    def __init__(self, size: tuple[int, int], decode: Callable[[int], Pixels]) -> None:
        self.size = size
        self._decode = decode
        self._decoded: dict[int, Pixels] = {}

    def pixels(self, reduce: int = 1) -> Pixels:
        """The pixels at 1/`reduce` of the size, rounded up; shared, so not to be written to.

        Raises:
            BrokenImageError: the image cannot be decoded.
        """
        if reduce not in self._decoded:
            self._decoded[reduce] = self._decode(reduce)
        return self._decoded[reduce]

    @classmethod
    def of(cls, image: "Picture | Image.Image") -> "Picture":
        """The picture itself, or that of a decoded RGB image."""
        return image if isinstance(image, Picture) else cls(image.size, lambda _: np.array(image))


def describe_decoding(*, as_stored: bool = False) -> dict[str, str]:
    """How `open_picture` makes pixels, for cache keys and results: the decoder of JPEGs, and whether EXIF is obeyed."""
    return {"decoder": decoder(), "exif": "ignored" if as_stored else "obeyed"}


def describe_framework_decoding(framework_config: Path | None) -> dict[str, str]:
    """How images become pixels in a framework's loop: by `load_image`, or by what the user's own config says."""
    if framework_config is not None:
        return {"decoder": f"that of {framework_config.name}"}
    return {"decoder": pillow(), "exif": "obeyed"}


def open_picture(data: bytes, name: str, *, as_stored: bool = False) -> Picture:
    """Read an encoded image: the header of a JPEG that simplejpeg decodes, all of any other, which Pillow decodes.

    Args:
        data: the contents of a file.
        name: what an error calls it.
        as_stored: do not turn it as its EXIF tag says.

    Raises:
        BrokenImageError: see `load_image`.
    """
    size = jpeg_size(data)
    if size is None:
        image = load_image(data, name, as_stored=as_stored)
        return Picture(
            image.size,
            lambda reduce: np.array(image if reduce == 1 else load_image(data, name, reduce, as_stored=as_stored)),
        )
    orientation = 1
    if not as_stored and may_be_turned(data):
        with open_image(data, name) as opened:
            orientation = exif_orientation(opened)

    def decode(reduce: int) -> Pixels:
        pixels = decode_jpeg(data, size, reduce)
        if pixels is None:
            return np.array(load_image(data, name, reduce, as_stored=as_stored))
        return pixels if orientation == 1 else np.array(upright(Image.fromarray(pixels), orientation))

    return Picture(size[::-1] if orientation >= 5 else size, decode)
