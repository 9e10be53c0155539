"""Our backbones in Detectron2: its own ResNet where the layers are the same, otherwise a wrapper around any net."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, SimpleFeaturePyramid
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from stillroom.backbone import build_backbone, load_checkpoint
from stillroom.det_transfer.freeze import FreezableModule, FrozenPart, sync_norms
from stillroom.det_transfer.levels import level_number

PATCH = "patch"
"""Name of the map that a net of one stride gives."""


class StillroomBackbone(FreezableModule, Backbone):
    """Any backbone of ours as a backbone of Detectron2: images (b, 3, h, w) -> {level2: (b, c, h/4, w/4), ...}.

    Args:
        name: as `build_backbone` takes it.
        arguments: for the library's constructor; in a config of ours, as JSON.
        out_features: names of the maps to return; level N has stride 2^N, and `patch` is the last map of a ViT.
        freeze: the part that is frozen.
        synced: whether batch norm statistics are over all processes.
    """

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, Any] | str,
        out_features: Sequence[str],
        freeze: FrozenPart = "nothing",
        synced: bool = False,
    ) -> None:
        super().__init__(freeze)
        self.net = build_backbone(
            name, arguments=json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
        )
        if synced:
            sync_norms(self.net)
        levels = self.net.spec.levels
        indices = {f"level{level_number(level.stride)}": index for index, level in enumerate(levels)}
        indices[PATCH] = len(levels) - 1
        self.indices = {feature: indices[feature] for feature in out_features}
        self._out_features = list(out_features)
        self._out_feature_channels = {feature: levels[index].channels for feature, index in self.indices.items()}
        self._out_feature_strides = {feature: levels[index].stride for feature, index in self.indices.items()}

    @property
    def size_divisibility(self) -> int:
        """The number that height and width must be multiples of, pixels."""
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.net(images).maps
        return {feature: maps[index] for feature, index in self.indices.items()}


class OneMoreLevel(LastLevelMaxPool):
    """Detectron2's max-pooled level above the pyramid, also for nets that do not end at stride 32.

    Args:
        in_feature: the pyramid's last level, such as p5.
    """

    def __init__(self, in_feature: str) -> None:
        super().__init__()
        self.in_feature = in_feature


class PaddedPyramid(SimpleFeaturePyramid):
    """Detectron2's pyramid of a ViT's map, for images of any size.

    Detectron2's own states the size that images must be padded to under a misspelt name (`size_divisiblity`), and so
    fails on images that are not square. Its layer norms are of a class that Detectron2 does not take for norms, so
    that they would get weight decay.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, norm=partial(LayerNorm2d, eps=1e-6))

    @property
    def size_divisibility(self) -> int:
        """The number that height and width must be multiples of, pixels."""
        return self._size_divisibility


def add_stillroom_config(cfg: CfgNode) -> None:
    """Add the keys of our backbones to a yacs config of Detectron2: MODEL.STILLROOM.CHECKPOINT, NAME, FREEZE_NORMS.

    CHECKPOINT is a checkpoint directory: the net, its constructor arguments and its weights; NAME, used without one, is
    a net with random weights. With MODEL.BACKBONE.NAME build_stillroom_fpn_backbone, MODEL.FPN.IN_FEATURES names the
    levels, from level2 on.
    """
    cfg.MODEL.STILLROOM = CfgNode({"CHECKPOINT": "", "NAME": "torchvision/mobilenet_v2", "FREEZE_NORMS": False})


@BACKBONE_REGISTRY.register()
def build_stillroom_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a feature pyramid on a backbone of ours, from a yacs config of Detectron2."""
    bottom_up = build_stillroom_backbone(cfg, input_shape)
    settings = cfg.MODEL.FPN
    top_level = OneMoreLevel(settings.IN_FEATURES[-1].replace("level", "p"))
    return FPN(bottom_up, settings.IN_FEATURES, settings.OUT_CHANNELS, settings.NORM, top_level, settings.FUSE_TYPE)


@BACKBONE_REGISTRY.register()
def build_stillroom_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> StillroomBackbone:
    """Build a backbone of ours, from a yacs config of Detectron2; a checkpoint that it names is loaded."""
    settings = cfg.MODEL.STILLROOM
    part: FrozenPart = "norms" if settings.FREEZE_NORMS else "nothing"
    if not settings.CHECKPOINT:
        return StillroomBackbone(settings.NAME, {}, cfg.MODEL.FPN.IN_FEATURES, part)
    loaded, _ = load_checkpoint(Path(settings.CHECKPOINT))
    built = StillroomBackbone(loaded.spec.name, loaded.spec.arguments, cfg.MODEL.FPN.IN_FEATURES, part)
    built.net.load_state_dict(loaded.state_dict())
    return built


class ExtraNorm(nn.Module):
    """A stage followed by a norm, as in KDEP's C4 head (and MoCo's)."""

    def __init__(self, stage: list[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.stage = nn.Sequential(*stage)
        self.norm = norm

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(self.stage(maps))


def boxes_in_float32(model: nn.Module) -> None:
    """Crop boxes from float32 maps: Detectron2 rounds their corners to the maps' type, in bfloat16 to 8 pixels."""
    for pooler in model.modules():
        if isinstance(pooler, ROIPooler):
            pooler.register_forward_pre_hook(lambda _, inputs: ([map_.float() for map_ in inputs[0]], *inputs[1:]))
