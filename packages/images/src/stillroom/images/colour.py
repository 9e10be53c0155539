"""Colours of random views: drawn for each image, and applied to one image or to a batch, on any device.

The arithmetic is that of torchvision's v2 functionals on float images; pixels are rounded once, at the end.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor
from torch.nn.functional import pad

from stillroom.images.view import uniform

_NEUTRAL = (1.0, 1.0, 1.0, 0.0)
_GREY = (0.2989, 0.587, 0.114)  # weights of red, green and blue (ITU-R BT.601), as torchvision rounds them
_SIDES = 3  # standard deviations to each side that the kernel of a blur covers

# Principal components of ImageNet's RGB pixels in [0, 1] (Krizhevsky et al. 2012, section 4.1; values as published
# with fb.resnet.torch and used ever since).
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


@dataclass(frozen=True, kw_only=True)
class Colour:
    """What is drawn of one view's colours. It is applied in this order: jitter, grey, blur, lighting.

    Args:
        order: of the jitter: a permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue.
        jitter: their factors, by these numbers; of hue the shift, in turns of the colour circle.
        grey: whether the colours are removed.
        blur: standard deviation of a Gaussian blur, fraction of the image's side; 0: none.
        lighting: what is added to red, green and blue, levels of 255.
    """

    order: tuple[int, ...] = (0, 1, 2, 3)
    jitter: tuple[float, ...] = _NEUTRAL
    grey: bool = False
    blur: float = 0.0
    lighting: tuple[float, ...] = (0.0, 0.0, 0.0)

    def pack(self) -> Float[Tensor, " 13"]:
        """The numbers in one row, so that a batch of them is one tensor."""
        return torch.tensor([*self.order, *self.jitter, float(self.grey), self.blur, *self.lighting])

    @classmethod
    def unpack(cls, row: Sequence[float]) -> "Colour":
        """The colours of a row that `pack` made."""
        order = tuple(int(number) for number in row[:4])
        return cls(order=order, jitter=tuple(row[4:8]), grey=bool(row[8]), blur=row[9], lighting=tuple(row[10:]))


def draw_jitter(
    strengths: tuple[float, float, float, float], generator: Generator
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Draw the order and the factors of a jitter as torchvision's ColorJitter does.

    Args:
        strengths: largest relative change of brightness, contrast and saturation, largest shift of hue; 0: not drawn.
        generator: on the CPU.
    """
    order = tuple(torch.randperm(4, generator=generator).tolist())
    factors = tuple(
        uniform(max(0.0, neutral - strength) if neutral else -strength, neutral + strength, generator)
        if strength
        else neutral
        for neutral, strength in zip(_NEUTRAL, strengths, strict=True)
    )
    return order, factors


def draw_lighting(std: float, generator: Generator) -> tuple[float, ...]:
    """Draw a colour along the principal components of ImageNet's pixels, levels of 255.

    Args:
        std: standard deviation of the three coefficients.
        generator: on the CPU.

    Reference: Krizhevsky et al., "ImageNet classification with deep CNNs", NeurIPS 2012, section 4.1.
    """
    coefficients = [std * value for value in torch.randn(3, generator=generator).tolist()]
    return tuple(
        255 * sum(v * e * c for v, e, c in zip(vector, _EIGENVALUES, coefficients, strict=True))
        for vector in _EIGENVECTORS
    )


def apply_colours(images: UInt8[Tensor, "b 3 h w"], colours: Sequence[Colour]) -> UInt8[Tensor, "b 3 h w"]:
    """Apply each image's colours to it.

    Nothing waits for the device: which images change by what is known on the CPU.

    Args:
        images: on any device.
        colours: one for each.
    """
    if all(colour == Colour(order=colour.order) for colour in colours):
        return images
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
    for position in range(4):
        for number, change in enumerate((_brightness, _contrast, _saturation, _hue)):
            values = {
                index: colour.jitter[number]
                for index, colour in enumerate(colours)
                if colour.order[position] == number and colour.jitter[number] != _NEUTRAL[number]
            }
            _change(pixels, values, change)
    _change(pixels, {index: 0.0 for index, colour in enumerate(colours) if colour.grey}, _saturation)
    side = max(images.shape[2:])
    _change(pixels, {index: colour.blur * side for index, colour in enumerate(colours) if colour.blur}, _blur)
    if any(any(colour.lighting) for colour in colours):
        lighting = _on(pixels.device, [colour.lighting for colour in colours])
        pixels.add_(lighting[:, :, None, None]).clamp_(0, 255)
    return pixels.add_(0.5).to(torch.int16).to(torch.uint8)  # the nearest level; without int16 it takes thrice as long


def _change(
    pixels: Float[Tensor, "b 3 h w"],
    values: dict[int, float],
    change: Callable[[Float[Tensor, "n 3 h w"], list[float]], None],
) -> None:
    """Change some images of a batch in place, each by its own value."""
    if len(values) == len(pixels):
        change(pixels, list(values.values()))
    elif values:
        index = _on(pixels.device, list(values))
        part = pixels[index]
        change(part, list(values.values()))
        pixels[index] = part


def _factor(pixels: Tensor, values: list[float]) -> float | Float[Tensor, "b 1 1 1"]:
    """What to multiply the images with, each with its own value; a number is faster than a tensor of one."""
    return values[0] if len(values) == 1 else _on(pixels.device, values).view(-1, 1, 1, 1)


def _on(device: torch.device, values: Sequence[object]) -> Tensor:
    """Values as a tensor on a device; from pinned memory, so that nothing waits for a GPU."""
    tensor = torch.tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _brightness(pixels: Tensor, values: list[float]) -> None:
    pixels.mul_(_factor(pixels, values))
    if max(values) > 1:
        pixels.clamp_(max=255)


def _contrast(pixels: Tensor, values: list[float]) -> None:
    factor = _factor(pixels, values)
    mean = _grey(pixels).mean(dim=(1, 2, 3), keepdim=True)
    pixels.mul_(factor).add_(mean * (1 - factor))
    if max(values) > 1:
        pixels.clamp_(0, 255)


def _saturation(pixels: Tensor, values: list[float]) -> None:
    torch.lerp(_grey(pixels), pixels, _factor(pixels, values), out=pixels)
    if max(values) > 1:
        pixels.clamp_(0, 255)


def _grey(pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    red, green, blue = pixels.split(1, dim=1)
    return (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])


def _hue(pixels: Tensor, values: list[float]) -> None:
    """Turn the colour circle, by which value and chroma stay.

    No selection by masks, which takes ten times as long as arithmetic on a CPU: which channel is the largest is a
    number, 0 or 1. Where two are equal, the hue from either is the same.
    """
    red, green, blue = pixels.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    other_than_red, other_than_green = (value - red).sign_(), value.sub_(green).sign_()
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(lowest)
    hue = (blue - red).add_(chroma, alpha=2)
    hue.lerp_((red - green).add_(chroma, alpha=4), other_than_green)
    hue = torch.lerp(torch.sub(green, blue, out=value), hue, other_than_red)
    hue.div_(torch.clamp(chroma, min=1e-6, out=value)).add_(_factor(pixels, [6 * shift for shift in values]))
    hue.sub_(torch.div(hue, 6, out=value).floor_(), alpha=6)  # sixths of the circle: 0 red, 2 green, 4 blue
    for channel, (centre, sign) in enumerate(((3, 1), (2, -1), (4, -1))):
        share = torch.sub(hue, centre, out=value).abs_().mul_(sign).sub_(1.5 * sign - 0.5).clamp_(0, 1)
        torch.addcmul(lowest, chroma, share, out=pixels[:, channel : channel + 1])


def _blur(pixels: Tensor, values: list[float]) -> None:
    """Blur by a Gaussian, reflecting at the edges, columns and then rows.

    By sums of shifted images, which take a fifth of a convolution's time on a CPU.
    """
    radius = min(math.ceil(_SIDES * max(values)), min(pixels.shape[2:]) - 1)
    kernels = [
        [math.exp(-0.5 * (x / std) ** 2) if x < _SIDES * std + 1 else 0.0 for x in range(radius + 1)] for std in values
    ]
    totals = [kernel[0] + 2 * sum(kernel[1:]) for kernel in kernels]
    for axis, edges in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded = pad(pixels, edges, mode="reflect")
        parts = [padded.narrow(axis, offset, pixels.shape[axis]) for offset in range(2 * radius + 1)]
        for x in range(radius + 1):
            weight = _factor(pixels, [kernel[x] / total for kernel, total in zip(kernels, totals, strict=True)])
            if x == 0:
                torch.mul(parts[radius], weight, out=pixels)
                continue
            for part in (parts[radius - x], parts[radius + x]):
                if isinstance(weight, float):
                    pixels.add_(part, alpha=weight)
                else:
                    pixels.addcmul_(part, weight)
