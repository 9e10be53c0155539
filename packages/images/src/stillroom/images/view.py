"""What a net sees of an image: the evaluation view as an `InputSpec` says, or a random crop."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from stillroom.backbone.spec import InputSpec
from stillroom.images.picture import Picture, Pixels

_THIN = 32  # ratio of the sides above which an image is cropped before it is resized
_RATIOS = (3 / 4, 4 / 3)
_LOG_RATIOS: list[float] = torch.log(torch.tensor(_RATIOS)).tolist()
_TRIES = 10
_REDUCED_TO = 256
"""Pixels of a view below which a crop is read from no smaller an image than for a view of this size: so that nets of
different sizes share one decoded image, and none of them sees other pixels for what the others see."""


class EvaluationView:
    """Resize and centre crop as an `InputSpec` says: image -> uint8 (3, size, size).

    Equal to torchvision's Resize and CenterCrop (v2) to the bit; torchvision takes longer to import than torch. An
    image whose sides differ by more than a factor of 32 is first cropped to that: 20,000 x 1 px would grow to 4 GiB.
    """

    def __init__(self, spec: InputSpec) -> None:
        self.spec = spec

    def __call__(self, image: Picture | Image.Image, generator: Generator | None = None) -> UInt8[Tensor, "3 h w"]:
        spec, size, picture = self.spec, self.spec.size, Picture.of(image)
        width, height = size, size
        array = picture.pixels()
        if spec.resize == "short side":
            side, short = round(size / spec.crop_fraction), min(picture.size)
            left, top = (max(0, length - _THIN * short) // 2 for length in picture.size)
            array = array[top : picture.size[1] - top, left : picture.size[0] - left]
            width, height = (int(side * length / short) for length in array.shape[1::-1])
        pixels = resize(array, (height, width), spec.interpolation, antialias=spec.antialias)
        top, left = round((height - size) / 2), round((width - size) / 2)
        return pixels[:, top : top + size, left : left + size]


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A rectangle of an image, pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool

    @classmethod
    def draw(cls, size: tuple[int, int], min_scale: float, generator: Generator) -> "Crop":
        """Draw a rectangle as torchvision's RandomResizedCrop does, and its mirroring as RandomHorizontalFlip does.

        The same state of the generator gives the same rectangle as there.

        Args:
            size: width and height of the image, pixels.
            min_scale: smallest area, fraction of the image's.
            generator: on the CPU.
        """
        width, height = size
        for _ in range(_TRIES):
            area = width * height * uniform(min_scale, 1.0, generator)
            ratio = torch.exp(torch.empty(1).uniform_(*_LOG_RATIOS, generator=generator)).item()
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
                left = int(torch.randint(0, width - w + 1, (1,), generator=generator))
                break
        else:  # the centre, at the nearest ratio
            w, h = min(width, round(height * _RATIOS[1])), min(height, round(width / _RATIOS[0]))
            top, left = (height - h) // 2, (width - w) // 2
        return cls(top=top, left=left, height=h, width=w, mirrored=happens(0.5, generator))

    def render(
        self, picture: Picture, size: int, interpolation: str = "bilinear", *, antialias: bool = True
    ) -> UInt8[Tensor, "3 h w"]:
        """The rectangle, resized to `size` x `size` pixels: equal to torchvision's crop, resize and flip to the bit.

        A rectangle of at least 4 times the size is read from an image decoded to 1/2, of 8 times to 1/4, of 16 times to
        1/8, where its format can do that.
        """
        reduce = self._reduce(max(size, _REDUCED_TO)) if antialias else 1
        array = picture.pixels(reduce)
        y, x = array.shape[0] / picture.size[1], array.shape[1] / picture.size[0]
        rows = slice(round(self.top * y), round((self.top + self.height) * y))
        columns = slice(round(self.left * x), round((self.left + self.width) * x))
        pixels = resize(array[rows, columns], (size, size), interpolation, antialias=antialias)
        return pixels.flip(2) if self.mirrored else pixels

    def _reduce(self, size: int) -> int:
        return max(
            reduce for reduce in (1, 2, 4, 8) if reduce == 1 or min(self.height, self.width) >= 2 * reduce * size
        )


class CropView:
    """A random crop, resized, and a flip, as an `InputSpec` says: image -> uint8 (3, size, size)."""

    def __init__(self, spec: InputSpec, min_scale: float) -> None:
        self.spec, self.min_scale = spec, min_scale

    def __call__(self, image: Picture | Image.Image, generator: Generator) -> UInt8[Tensor, "3 h w"]:
        picture, spec = Picture.of(image), self.spec
        crop = Crop.draw(picture.size, self.min_scale, generator)
        return crop.render(picture, spec.size, spec.interpolation, antialias=spec.antialias)


def resize(array: Pixels, size: tuple[int, int], interpolation: str, *, antialias: bool) -> UInt8[Tensor, "3 _ _"]:
    """Resize as torchvision does, to the bit: height and width."""
    if array.shape[:2] == size:
        return torch.from_numpy(array).permute(2, 0, 1)
    pixels = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
    # A batch of one with the stride of one image: the form of channels-last pixels that torch resizes fastest.
    batch = pixels.as_strided((1, *pixels.shape), (pixels.numel(), *pixels.stride()))
    return interpolate(batch, size, mode=interpolation, align_corners=False, antialias=antialias)[0]


def uniform(low: float, high: float, generator: Generator) -> float:
    """Draw a number from an interval."""
    return torch.empty(1).uniform_(low, high, generator=generator).item()


def happens(probability: float, generator: Generator) -> bool:
    """Draw whether something of this probability happens."""
    return torch.rand(1, generator=generator).item() < probability
