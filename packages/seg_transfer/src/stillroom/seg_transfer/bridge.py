"""Between our backbones and MMSegmentation's: which net, which name for each tensor, and the way back."""

from stillroom.seg_transfer import quiet  # noqa: F401  # before all that imports MMSegmentation

# isort: split

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from stillroom.backbone import BackboneSpec, build_backbone
from stillroom.backbone.bridge import UNUSED, Bridge, assert_same
from stillroom.backbone.keys import Rule
from stillroom.seg_transfer.nets import Atrous

RESNETS = (18, 34, 50, 101, 152)
DEEP_STEM = {"timm/resnet50c": 50}
OTHER_LAYERS = {
    "style": "pytorch", "avg_down": False, "base_channels": 64, "stem_channels": 64, "dcn": None, "plugins": None,
}  # fmt: skip
"""What makes another net of MMSegmentation's ResNet, under the same names; and what it is in ours."""
_STAGES = (1, 2, 3, 4, 3, 3, 1)  # blocks of MobileNet-V2's stages

_SAME = (Rule(r"((?:conv1|bn1|layer[1-4])\..*)", r"\1"),)

_DEEP_STEM = (Rule(r"conv1\.(\d)\.(.*)", r"stem.\1.\2"), Rule(r"bn1\.(.*)", r"stem.7.\1"), *_SAME)


def _torchvision_mobilenet_v2() -> tuple[Rule, ...]:
    """`features.N.conv.K` in `layerS.B.conv.K.conv|bn`; features.18, the last 1x1 convolution, has no place there."""
    rules = [Rule(r"features\.0\.0\.(.*)", r"conv1.conv.\1"), Rule(r"features\.0\.1\.(.*)", r"conv1.bn.\1")]
    number = 1
    for stage, blocks in enumerate(_STAGES, start=1):
        for block in range(blocks):
            theirs, ours = f"layer{stage}.{block}.conv", rf"features\.{number}\.conv"
            groups = 1 if number == 1 else 2  # the first block does not expand
            for k in range(groups):
                rules.append(Rule(rf"{ours}\.{k}\.0\.(.*)", rf"{theirs}.{k}.conv.\1"))
                rules.append(Rule(rf"{ours}\.{k}\.1\.(.*)", rf"{theirs}.{k}.bn.\1"))
            rules.append(Rule(rf"{ours}\.{groups}\.(.*)", rf"{theirs}.{groups}.conv.\1"))
            rules.append(Rule(rf"{ours}\.{groups + 1}\.(.*)", rf"{theirs}.{groups}.bn.\1"))
            number += 1
    return (*rules, Rule(rf"(features\.{number}\..*)", rf"{UNUSED}\1"))


def _timm_mobilenet_v2() -> tuple[Rule, ...]:
    """`blocks.S.B.conv_pw`, `conv_dw`, `conv_pwl` in `layerS.B.conv.K.conv|bn`; conv_head and its norm are aside."""
    rules = [Rule(r"conv_stem\.(.*)", r"conv1.conv.\1"), Rule(r"bn1\.(.*)", r"conv1.bn.\1")]
    for stage in range(len(_STAGES)):
        layers = ("conv_dw", "conv_pw") if stage == 0 else ("conv_pw", "conv_dw", "conv_pwl")
        for k, layer in enumerate(layers):
            theirs = rf"layer{stage + 1}.\1.conv.{k}"
            rules.append(Rule(rf"blocks\.{stage}\.(\d)\.{layer}\.(.*)", rf"{theirs}.conv.\2"))
            rules.append(Rule(rf"blocks\.{stage}\.(\d)\.bn{k + 1}\.(.*)", rf"{theirs}.bn.\2"))
    return (*rules, Rule(r"((?:conv_head|bn2)\..*)", rf"{UNUSED}\1"))


@dataclass(frozen=True, kw_only=True)
class SegBridge(Bridge):
    """A backbone's place in MMSegmentation.

    Args:
        config: of MMSegmentation's backbone, without `init_cfg`.
        channels: of each map that the backbone gives, finest first.
        strides: of each map, input pixels per pixel.
        divisor: what height and width must be a multiple of, pixels; images to measure on are padded to it.
    """

    config: dict[str, Any]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    divisor: int = 1


def build_bridge(
    spec: BackboneSpec, *, output_stride: int = 32, atrous: Atrous = "exact", frozen: bool = False
) -> SegBridge:
    """Choose MMSegmentation's own net where it has the same layers, else the wrapper of ours.

    Args:
        spec: of our backbone.
        output_stride: of the last map, pixels; smaller than the net's own: dilated.
        atrous: how strides are taken out.
        frozen: keep the backbone's weights.

    Raises:
        ValueError: a net that cannot be dilated, or not in this way; one without levels.
    """
    library, _, short = spec.name.partition("/")
    short = short.split(".")[0]
    plain = not spec.arguments
    native: dict[str, Any] = {"output_stride": output_stride, "frozen": frozen}
    if output_stride not in (8, 16, 32):
        raise ValueError(f"--output-stride is {output_stride}: 8, 16 or 32 pixels")
    if atrous == "second" and (short not in ("resnet18", "resnet34") or output_stride != 8 or not plain):
        raise ValueError(
            f"--atrous second is KDEP's PSPNet of ResNet-18 at stride 8, not {spec.name} at {output_stride}"
        )
    if plain and library in ("torchvision", "timm") and short in {f"resnet{depth}" for depth in RESNETS}:
        config = {"type": "StillroomResNet", "depth": int(short[6:]), **native, "atrous": atrous}
        return _bridge(spec, config, _SAME, output_stride)
    if plain and f"{library}/{short}" in DEEP_STEM:
        config = {"type": "StillroomResNetV1c", "depth": DEEP_STEM[f"{library}/{short}"], **native}
        return _bridge(spec, config, _DEEP_STEM, output_stride)
    if plain and spec.name == "torchvision/mobilenet_v2":
        return _bridge(spec, _mobilenet(native), _torchvision_mobilenet_v2(), output_stride)
    if plain and library == "timm" and short == "mobilenetv2_100":
        return _bridge(spec, _mobilenet(native), _timm_mobilenet_v2(), output_stride)
    if not spec.levels:
        raise ValueError(f"{spec.name} has no levels: a segmentation head needs feature maps")
    return _wrapped(spec, output_stride, frozen)


def adopt_bridge(spec: BackboneSpec, config: Mapping[str, Any]) -> SegBridge:
    """The bridge into the backbone of a user's own config.

    Args:
        spec: of our backbone.
        config: of MMSegmentation's backbone; it is taken as it is.

    Raises:
        ValueError: a backbone without key rules, or one that the net does not fit.
    """
    own = build_bridge(spec)
    kinds = {"StillroomResNet": "ResNet", "StillroomResNetV1c": "ResNetV1c", "StillroomMobileNetV2": "MobileNetV2"}
    kind = str(config["type"]).removeprefix("mmseg.")
    fits, given = kinds.get(own.config["type"], own.config["type"]), kinds.get(kind, kind)
    deep = given == "ResNetV1c" or (given == "ResNet" and config.get("deep_stem", False))
    if given in ("ResNet", "ResNetV1c") and fits in ("ResNet", "ResNetV1c") and deep != (fits == "ResNetV1c"):
        stems = ("three 3x3 convolutions", "one 7x7 convolution")
        theirs, ours = stems if deep else stems[::-1]
        raise ValueError(f"{kind} begins with {theirs}, {spec.name} with {ours}: take ResNet{'' if deep else 'V1c'}")
    for name, plain in OTHER_LAYERS.items():
        if given.startswith("ResNet") and config.get(name, plain) != plain:
            raise ValueError(
                f"the config's {kind} has {name}={config[name]!r}, {spec.name} is a net of {name}={plain!r}"
            )
    if given != fits:
        raise ValueError(f"{spec.name} fits MMSegmentation's {fits}, the config's backbone is {kind}")
    return replace(own, config=dict(config))


def _mobilenet(native: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "StillroomMobileNetV2", "out_indices": (1, 2, 4, 6), **native}


def _bridge(spec: BackboneSpec, config: dict[str, Any], rules: tuple[Rule, ...], output_stride: int) -> SegBridge:
    strides = tuple(min(level.stride, output_stride) for level in spec.levels)
    channels = tuple(level.channels for level in spec.levels)
    return SegBridge(spec=spec, rules=rules, config=config, channels=channels, strides=strides)


def _wrapped(spec: BackboneSpec, output_stride: int, frozen: bool) -> SegBridge:
    arguments = dict(spec.arguments)
    coarsest = max(level.stride for level in spec.levels)
    if coarsest > output_stride:
        if not spec.name.startswith("timm/"):
            raise ValueError(f"{spec.name} cannot be dilated to stride {output_stride}: say --output-stride {coarsest}")
        arguments["output_stride"] = output_stride
    try:
        levels = build_backbone(spec.name, arguments=arguments).spec.levels
    except (TypeError, NotImplementedError, AssertionError) as error:
        raise ValueError(
            f"{spec.name} cannot be dilated to stride {output_stride}: say --output-stride {coarsest}"
        ) from error
    config = {"type": "StillroomBackbone", "name": spec.name, "arguments": arguments, "frozen": frozen}
    return SegBridge(
        spec=spec, rules=(Rule(r"(.*)", r"net.net.\1"),), config=config,
        channels=tuple(level.channels for level in levels), strides=tuple(level.stride for level in levels),
        divisor=levels[0].stride if len({level.stride for level in levels}) == 1 else 1,  # ViT: whole patches
    )  # fmt: skip


@HOOKS.register_module()
class AssertLoaded(Hook):
    """Before the first step, check that the built model's backbone holds the first weights, tensor by tensor.

    Args:
        file: of the tensors under MMSegmentation's names.
    """

    def __init__(self, file: str) -> None:
        self.file = file

    def before_train(self, runner: Runner) -> None:
        """As it says; a resumed run is beyond its first step."""
        if runner.iter == 0:
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            assert_same(model.backbone.state_dict(), torch.load(self.file, map_location="cpu", weights_only=True))
