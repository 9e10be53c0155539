"""Augmentations of training images: random crops, flips, RandAugment, mixup, CutMix."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2

from stillroom.backbone import InputSpec
from stillroom.cls_transfer.config import ClassifyConfig

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images (b, 3, h, w), labels (b,)) -> (images, labels or class probabilities (b, k))"""

_OPERATIONS = 2  # of RandAugment


def build_view(config: ClassifyConfig, spec: InputSpec) -> v2.Compose:
    """Build the training view: PIL image -> uint8 (3, size, size)."""
    interpolation = v2.InterpolationMode(spec.interpolation)
    steps = [
        v2.PILToTensor(),
        v2.RandomResizedCrop(
            spec.size, scale=(config.min_scale, 1.0), interpolation=interpolation, antialias=spec.antialias
        ),
        v2.RandomHorizontalFlip(),
    ]
    if config.randaugment:
        steps.append(v2.RandAugment(_OPERATIONS, config.randaugment))
    return v2.Compose(steps)


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
