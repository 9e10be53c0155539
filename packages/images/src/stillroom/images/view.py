"""What a net sees of an image in evaluation: resized and cropped as an `InputSpec` says."""

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from stillroom.backbone.spec import InputSpec

_THIN = 32  # ratio of the sides above which an image is cropped before it is resized


class EvaluationView:
    """Resize and centre crop as an `InputSpec` says: PIL image -> uint8 (3, size, size).

    Equal to torchvision's Resize and CenterCrop (v2) to the bit; torchvision takes longer to import than torch. An
    image whose sides differ by more than a factor of 32 is first cropped to that: 20,000 x 1 px would grow to 4 GiB.
    """

    def __init__(self, spec: InputSpec) -> None:
        self.spec = spec

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        spec, size = self.spec, self.spec.size
        width, height = size, size
        if spec.resize == "short side":
            side, short = round(size / spec.crop_fraction), min(image.size)
            left, top = (max(0, length - _THIN * short) // 2 for length in image.size)
            if left or top:
                image = image.crop((left, top, image.width - left, image.height - top))
            width, height = (int(side * length / short) for length in image.size)
        # The channels are last in memory, as Pillow has them: torch then resizes without a copy.
        pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)
        if (width, height) != image.size:
            pixels = interpolate(
                pixels, (height, width), mode=spec.interpolation, align_corners=False, antialias=spec.antialias
            )
        top, left = round((height - size) / 2), round((width - size) / 2)
        return pixels[0, :, top : top + size, left : left + size]
