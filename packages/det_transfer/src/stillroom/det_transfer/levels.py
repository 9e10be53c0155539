"""Which of a backbone's maps a detector takes, and the layers of a backbone that are held or cut off."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from stillroom.backbone import BackboneSpec, Level, Run
from stillroom.det_transfer.config import DetectConfig

Hold = Literal["nothing", "norms", "all"]
FINEST = {"faster-rcnn": 4, "mask-rcnn": 4, "retinanet": 8}
"""Stride of the finest map that the pyramid of each takes, input pixels."""
RATIOS = (0.5, 1.0, 2.0)
"""Height over width of anchors."""
RETINA_OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
C4_SCALES = (2, 4, 8, 16, 32)
"""Sides of the anchors on the one map of c4, over its stride."""


def is_resnet(spec: BackboneSpec) -> bool:
    """Whether a net has the stem and the four stages of a ResNet, and its names."""
    library, _, short = spec.name.partition("/")
    return library in ("torchvision", "timm") and short.startswith(("resnet", "resnext", "wide_resnet"))


def is_flat(spec: BackboneSpec) -> bool:
    """Whether all maps have one stride (ViT): the pyramid is then made of the last one."""
    return len({level.stride for level in spec.levels}) == 1


def check_flat(spec: BackboneSpec, config: DetectConfig) -> None:
    """Refuse what the pyramid of one map (`is_flat`) does not have.

    Raises:
        ValueError: RetinaNet, whose levels want maps of their own; group norm, where layer norms stand.
    """
    if config.detector == "retinanet":
        raise ValueError(f"retinanet takes maps of several strides, {spec.name} has one: say faster-rcnn-fpn")
    if config.fpn_norm != "none":
        raise ValueError(f"the pyramid of {spec.name}, a net of one stride, has layer norms: leave --fpn-norm out")


def taken_levels(spec: BackboneSpec, config: DetectConfig) -> tuple[int, ...]:
    """The places of the maps that a detector's pyramid takes.

    Raises:
        ValueError: no map, or strides that do not double from one to the next.
    """
    if is_flat(spec):
        return (len(spec.levels) - 1,)
    finest = FINEST[config.detector]
    taken = tuple(place for place, level in enumerate(spec.levels) if level.stride >= finest)
    if not taken:
        coarsest = max((level.stride for level in spec.levels), default=0)
        if not coarsest:
            raise ValueError(f"{spec.name} has no levels: a detector needs feature maps")
        raise ValueError(f"{config.detector} takes maps of stride {finest} and more, {spec.name} ends at {coarsest}")
    strides = [spec.levels[place].stride for place in taken]
    if any(b != 2 * a for a, b in pairwise(strides)):
        raise ValueError(f"the maps of {spec.name} have strides {strides}: a pyramid wants each twice the one before")
    return taken


def pyramid_strides(spec: BackboneSpec, config: DetectConfig) -> tuple[int, ...]:
    """Strides of the pyramid's levels, those behind the backbone's last one included."""
    finest = FINEST[config.detector]
    if is_flat(spec):
        patch = spec.levels[0].stride
        own = [stride for stride in (patch // 4, patch // 2, patch, patch * 2) if stride >= finest]
    else:
        own = [spec.levels[place].stride for place in taken_levels(spec, config)]
    more = 2 if config.detector == "retinanet" else 1
    return (*own, *(own[-1] * 2 ** (i + 1) for i in range(more)))


def anchor_sides(spec: BackboneSpec, config: DetectConfig) -> list[list[float]]:
    """Sides of the anchors of each level, pixels."""
    if config.neck == "c4":
        return [[float(scale * 16) for scale in C4_SCALES]]
    octaves = RETINA_OCTAVES if config.detector == "retinanet" else (1.0,)
    scale = config.anchor_scale / 2 if config.detector == "retinanet" else config.anchor_scale
    return [[stride * scale * octave for octave in octaves] for stride in pyramid_strides(spec, config)]


def check_c4(spec: BackboneSpec) -> Level:
    """The map that c4 cuts boxes out of.

    Raises:
        ValueError: a net without the four stages of a ResNet.
    """
    if not is_resnet(spec) or [level.stride for level in spec.levels] != [4, 8, 16, 32]:
        raise ValueError(
            f"--neck c4 wants the four stages of a ResNet, which {spec.name} does not have: say --neck fpn"
        )
    return spec.levels[2]


def power(stride: int) -> int:
    """Of two, that a stride is: level 2 has stride 4."""
    return int(math.log2(stride))


class Held(nn.Module):
    """A net of which something may stay as it came: its batch norms (statistics and affine), or all of it."""

    def __init__(self, hold: Hold) -> None:
        super().__init__()
        self.hold = hold

    def train(self, mode: bool = True) -> "Held":
        """What is held stays in evaluation mode, and its weights want no gradient."""
        super().train(mode)
        kept = {"nothing": [], "norms": batch_norms(self), "all": [*self.children()]}[self.hold]
        for module in kept:
            module.eval()
            module.requires_grad_(False)
        return self


def held(config: DetectConfig) -> Hold:
    """What a run keeps of its backbone."""
    return "all" if config.frozen else "norms" if config.norm == "frozen" else "nothing"


def batch_norms(net: nn.Module) -> Sequence[Any]:
    """The batch norms of a net, timm's with an activation inside too."""
    return [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def sync_norms(net: nn.Module) -> None:
    """Let the batch norms of a net count over all processes, in place."""
    from timm.layers import convert_sync_batchnorm  # noqa: PLC0415  # no other run needs timm

    convert_sync_batchnorm(net)  # timm's: torch's would drop the activation inside a BatchNormAct2d


def share_statistics(model: nn.Module, run: Run) -> None:
    """Give every process the main one's batch norm statistics, which are those that are written and measured."""
    if run.world_size > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
