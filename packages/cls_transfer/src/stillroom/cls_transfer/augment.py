"""Augmentations of training images: random crops, flips, RandAugment, mixup, CutMix."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms import v2

from stillroom.backbone import InputSpec
from stillroom.cls_transfer.config import ClassifyConfig
from stillroom.images.picture import Picture
from stillroom.images.view import CropView

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images (b, 3, h, w), labels (b,)) -> (images, labels or class probabilities (b, k))"""

_OPERATIONS = 2  # of RandAugment


class TrainingView:
    """A random crop and flip, then RandAugment if the config asks for it: image -> uint8 (3, size, size)."""

    def __init__(self, config: ClassifyConfig, spec: InputSpec) -> None:
        self._crop = CropView(spec, config.min_scale)
        self._augment = v2.RandAugment(_OPERATIONS, config.randaugment) if config.randaugment else None

    def __call__(self, image: Picture | Image.Image, generator: Generator) -> Tensor:
        pixels = self._crop(image, generator)
        if self._augment is None:
            return pixels
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
            torch.set_rng_state(generator.get_state())
            return self._augment(pixels)


def build_mixing(config: ClassifyConfig, num_classes: int) -> Mixing:
    """Build mixup (Zhang et al., ICLR 2018), CutMix (Yun et al., ICCV 2019), a random choice of both, or neither.

    They draw from torch's generator, which is seeded in each step.
    """
    choices: list[v2.Transform] = []
    if config.mixup:
        choices.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
    if config.cutmix:
        choices.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not choices:
            return images, labels
        return choices[int(torch.randint(len(choices), ()))](images, labels)

    return mix
