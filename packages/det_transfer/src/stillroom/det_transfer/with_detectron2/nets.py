"""Our backbones as Detectron2 sees them: its own ResNet where the layers are the same, else one wrapper of any net."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, SimpleFeaturePyramid
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from stillroom.backbone import BackboneSpec, build_backbone
from stillroom.backbone.bridge import UNUSED
from stillroom.backbone.keys import Rule
from stillroom.det_transfer.levels import Held, Hold, power, sync_norms

DEPTHS = (18, 34, 50, 101, 152)
PATCH = "patch"
"""Name of the one map of a net of one stride."""


class StillroomBackbone(Held, Backbone):
    """Any backbone of ours as a backbone of Detectron2: images (b, 3, h, w) -> {level2: (b, c, h/4, w/4), ...}.

    Args:
        name: as `build_backbone` takes it.
        arguments: of the library's constructor.
        out_features: names of the maps that are given; level N has stride 2^N, and `patch` is the last map of a ViT.
        hold: of it.
        synced: its batch norms count over all processes.
    """

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, Any],
        out_features: Sequence[str],
        hold: Hold = "nothing",
        synced: bool = False,
    ) -> None:
        super().__init__(hold)
        self.net = build_backbone(name, arguments=dict(arguments))
        if synced:
            sync_norms(self.net)
        levels = self.net.spec.levels
        places = {f"level{power(level.stride)}": place for place, level in enumerate(levels)}
        places[PATCH] = len(levels) - 1
        self.places = {feature: places[feature] for feature in out_features}
        self._out_features = list(out_features)
        self._out_feature_channels = {f: levels[place].channels for f, place in self.places.items()}
        self._out_feature_strides = {f: levels[place].stride for f, place in self.places.items()}

    @property
    def size_divisibility(self) -> int:
        """Of height and width, pixels."""
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.net(images).maps
        return {feature: maps[place] for feature, place in self.places.items()}


class OneMoreLevel(LastLevelMaxPool):
    """Detectron2's level behind the pyramid, of nets that do not end at stride 32 too.

    Args:
        in_feature: the last level, such as p5.
    """

    def __init__(self, in_feature: str) -> None:
        super().__init__()
        self.in_feature = in_feature


class PaddedPyramid(SimpleFeaturePyramid):
    """Detectron2's pyramid of a ViT's map, for images of any size: it says itself that they must be padded.

    Detectron2's own says so under a misspelt name (`size_divisiblity`), and fails on what is no square. Its layer norms
    are of a class that its optimizer does not know for one, and decays.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, norm=partial(LayerNorm2d, eps=1e-6))

    @property
    def size_divisibility(self) -> int:
        """Of height and width, pixels."""
        return self._size_divisibility


def add_stillroom_config(cfg: CfgNode) -> None:
    """What a .yaml of Detectron2's says of a backbone of ours: MODEL.STILLROOM.NAME, FREEZE_NORMS.

    With MODEL.BACKBONE.NAME build_stillroom_fpn_backbone, the pyramid takes MODEL.FPN.IN_FEATURES, level2 and on.
    """
    cfg.MODEL.STILLROOM = CfgNode({"NAME": "torchvision/mobilenet_v2", "FREEZE_NORMS": False})


@BACKBONE_REGISTRY.register()
def build_stillroom_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A feature pyramid on a backbone of ours, from Detectron2's .yaml."""
    bottom_up = build_stillroom_backbone(cfg, input_shape)
    return FPN(
        bottom_up, cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM,
        OneMoreLevel(cfg.MODEL.FPN.IN_FEATURES[-1].replace("level", "p")), cfg.MODEL.FPN.FUSE_TYPE,
    )  # fmt: skip


@BACKBONE_REGISTRY.register()
def build_stillroom_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> StillroomBackbone:
    """A backbone of ours, from Detectron2's .yaml."""
    own = cfg.MODEL.STILLROOM
    return StillroomBackbone(own.NAME, {}, cfg.MODEL.FPN.IN_FEATURES, "norms" if own.FREEZE_NORMS else "nothing")


class ExtraNorm(nn.Module):
    """A stage and one norm behind it, as KDEP's C4 head has (MoCo's too)."""

    def __init__(self, stage: list[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.stage = nn.Sequential(*stage)
        self.norm = norm

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(self.stage(maps))


def native_depth(spec: BackboneSpec) -> int | None:
    """The depth of Detectron2's ResNet that has the same layers, or None."""
    library, _, short = spec.name.partition("/")
    short = short.split(".")[0]
    plain = library in ("torchvision", "timm") and not spec.arguments
    return next((depth for depth in DEPTHS if plain and short == f"resnet{depth}"), None)


def resnet_rules(body: str, head: str | None, frozen: bool, legacy: bool = False) -> tuple[Rule, ...]:
    """torchvision's names in Detectron2's.

    Args:
        body: where the net stands in the model, with a dot.
        head: where its last stage stands, with a dot; None: in the body.
        frozen: its norms have no counter of batches, which is put aside.
        legacy: the head is made of bottlenecks, whose first convolutions do not fit.
    """
    last = "layer4" if head is not None else None
    rules = [Rule(r"(.*\.num_batches_tracked)", rf"{UNUSED}\1")] if frozen else []
    if legacy:
        rules.append(Rule(r"(layer4\.\d+\.conv1\.weight)", rf"{UNUSED}\1"))
    rules += [Rule(r"conv1\.weight", f"{body}stem.conv1.weight"), Rule(r"bn1\.(.*)", rf"{body}stem.conv1.norm.\1")]
    for stage in range(1, 5):
        there = head if f"layer{stage}" == last else f"{body}res{stage + 1}."
        rules += [
            Rule(rf"layer{stage}\.(\d+)\.conv(\d)\.weight", rf"{there}\1.conv\2.weight"),
            Rule(rf"layer{stage}\.(\d+)\.bn(\d)\.(.*)", rf"{there}\1.conv\2.norm.\3"),
            Rule(rf"layer{stage}\.(\d+)\.downsample\.0\.weight", rf"{there}\1.shortcut.weight"),
            Rule(rf"layer{stage}\.(\d+)\.downsample\.1\.(.*)", rf"{there}\1.shortcut.norm.\2"),
        ]
    return tuple(rules)
