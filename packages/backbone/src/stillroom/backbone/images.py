"""Decoding images, and preprocessing them as an `InputSpec` says."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from torch import Tensor, nn
from torch.nn.functional import interpolate

from stillroom.backbone.spec import InputSpec


class BrokenImageError(ValueError):
    """An image file that cannot be decoded."""


UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for a file that it cannot decode."""
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


def load_image(path: Path) -> Image.Image:
    """Decode one image as 8-bit RGB from any mode (grey, palette, CMYK, 16 bit, transparent over white).

    Raises:
        BrokenImageError: truncated, not an image, or larger than Pillow's decompression limit.
    """
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "truncated images must be found, not read as grey"
    try:
        with Image.open(path) as opened:
            opened.load()
            image: Image.Image = opened
            if image.mode.startswith("I;16") or image.mode == "I":
                return Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                ground = Image.new("RGBA", image.size, "white")
                return Image.alpha_composite(ground, image).convert("RGB")
            return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise BrokenImageError(
            f"{path} cannot be read as an image: {error}; shrink it, or leave it out (most commands: --on-broken skip)"
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BrokenImageError(f"{path} cannot be read as an image: {error}") from error


def load_upright(path: Path) -> Image.Image:
    """Decode one image as `load_image` does, and turn it as its EXIF tag says: as viewers and labelling tools show it.

    Raises:
        BrokenImageError: see `load_image`.
    """
    image = load_image(path)
    with Image.open(path) as opened:
        return upright(image, exif_orientation(opened))


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


class EvaluationView:
    """Resize and centre crop as an `InputSpec` says: PIL image -> uint8 (3, size, size).

    Equal to torchvision's Resize and CenterCrop (v2) to the bit; torchvision takes longer to import than torch.
    """

    def __init__(self, spec: InputSpec) -> None:
        self.spec = spec

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        spec, size = self.spec, self.spec.size
        width, height = size, size
        if spec.resize == "short side":
            side, short = round(size / spec.crop_fraction), min(image.size)
            width, height = (int(side * length / short) for length in image.size)
        # The channels are last in memory, as Pillow has them: torch then resizes without a copy.
        pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)
        if (width, height) != image.size:
            pixels = interpolate(
                pixels, (height, width), mode=spec.interpolation, align_corners=False, antialias=spec.antialias
            )
        top, left = round((height - size) / 2), round((width - size) / 2)
        return pixels[0, :, top : top + size, left : left + size]


class Normalize(nn.Module):
    """Convert uint8 RGB pixels, or floats in [0, 1], to a net's input: channel order, value range, mean and std.

    Applied once, by the caller, on the device.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.flip = spec.channel_order == "bgr"
        self.low, high = spec.value_range
        self.span = high - self.low
        # float32 for any kind of number: NumPy's would make it float64
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        unit = images.float() / 255 if images.dtype == torch.uint8 else images
        if self.flip:
            unit = unit.flip(1)
        return (unit * self.span + self.low - self.mean) / self.std
