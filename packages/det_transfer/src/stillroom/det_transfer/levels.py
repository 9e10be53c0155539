"""The feature levels that a detector takes from a backbone, and the anchors on them."""

import math
from itertools import pairwise

from stillroom.backbone import BackboneSpec, Level
from stillroom.det_transfer.config import DetectConfig

FINEST_STRIDE = {"faster-rcnn": 4, "mask-rcnn": 4, "retinanet": 8}
"""Stride of the finest map that each detector's pyramid takes, input pixels."""
ASPECT_RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors."""
RETINANET_OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
C4_SCALES = (2, 4, 8, 16, 32)
"""Sides of the anchors on c4's single map, over its stride."""


def is_resnet(spec: BackboneSpec) -> bool:
    """Whether a net has a ResNet's stem and four stages, under a ResNet's names."""
    library, _, short = spec.name.partition("/")
    return library in ("torchvision", "timm") and short.startswith(("resnet", "resnext", "wide_resnet"))


def has_one_stride(spec: BackboneSpec) -> bool:
    """Whether all maps have one stride (ViT): the pyramid is then built from the last one."""
    return len({level.stride for level in spec.levels}) == 1


def check_one_stride(spec: BackboneSpec, config: DetectConfig) -> None:
    """Refuse what the pyramid of a single map (`has_one_stride`) does not have.

    Raises:
        ValueError: RetinaNet, whose levels need maps of their own; group norm, because this pyramid has layer norms.
    """
    if config.detector == "retinanet":
        raise ValueError(f"retinanet takes maps of several strides, {spec.name} has one: use faster-rcnn-fpn")
    if config.fpn_norm != "none":
        raise ValueError(f"the pyramid of {spec.name}, a net of one stride, has layer norms: leave --fpn-norm out")


def pyramid_inputs(spec: BackboneSpec, config: DetectConfig) -> tuple[int, ...]:
    """Indices of the backbone's maps that the pyramid takes.

    Raises:
        ValueError: no map, or strides that do not double from one to the next.
    """
    if has_one_stride(spec):
        return (len(spec.levels) - 1,)
    finest = FINEST_STRIDE[config.detector]
    indices = tuple(index for index, level in enumerate(spec.levels) if level.stride >= finest)
    if not indices:
        coarsest = max((level.stride for level in spec.levels), default=0)
        if not coarsest:
            raise ValueError(f"{spec.name} has no levels: a detector needs feature maps")
        raise ValueError(
            f"{config.detector} takes maps of stride {finest} and more, the coarsest of {spec.name} is {coarsest}"
        )
    strides = [spec.levels[index].stride for index in indices]
    if any(b != 2 * a for a, b in pairwise(strides)):
        raise ValueError(
            f"the maps of {spec.name} have strides {strides}: a pyramid needs each to be twice the one before"
        )
    return indices


def pyramid_strides(spec: BackboneSpec, config: DetectConfig) -> tuple[int, ...]:
    """Strides of the pyramid's levels, including those beyond the backbone's coarsest map."""
    finest = FINEST_STRIDE[config.detector]
    if has_one_stride(spec):
        patch = spec.levels[0].stride
        strides = [stride for stride in (patch // 4, patch // 2, patch, patch * 2) if stride >= finest]
    else:
        strides = [spec.levels[index].stride for index in pyramid_inputs(spec, config)]
    num_extra = 2 if config.detector == "retinanet" else 1
    return (*strides, *(strides[-1] * 2 ** (i + 1) for i in range(num_extra)))


def anchor_sides(spec: BackboneSpec, config: DetectConfig) -> list[list[float]]:
    """Sides of the anchors of each level, pixels."""
    if config.neck == "c4":
        return [[float(scale * 16) for scale in C4_SCALES]]
    octaves = RETINANET_OCTAVES if config.detector == "retinanet" else (1.0,)
    scale = config.anchor_scale / 2 if config.detector == "retinanet" else config.anchor_scale
    return [[stride * scale * octave for octave in octaves] for stride in pyramid_strides(spec, config)]


def c4_level(spec: BackboneSpec) -> Level:
    """The stride-16 map that c4 crops boxes from.

    Raises:
        ValueError: a net without the four stages of a ResNet.
    """
    if not is_resnet(spec) or [level.stride for level in spec.levels] != [4, 8, 16, 32]:
        raise ValueError(
            f"--neck c4 needs the four stages of a ResNet, which {spec.name} does not have: pass --neck fpn"
        )
    return spec.levels[2]


def level_number(stride: int) -> int:
    """The exponent of two of a stride: level 2 has stride 4."""
    return int(math.log2(stride))
