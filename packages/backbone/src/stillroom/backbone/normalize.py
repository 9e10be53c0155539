"""From pixels to a net's input, as an `InputSpec` says."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from stillroom.backbone.spec import InputSpec


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
