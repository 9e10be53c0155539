"""Between our backbones and MMSegmentation's: which net, which name for each tensor, and the way back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import Tensor, nn

from stillroom.backbone import Backbone, BackboneSpec, CheckpointError, build_backbone
from stillroom.backbone.checkpoint import load_strictly
from stillroom.backbone.keys import Rule, rename
from stillroom.seg_transfer.nets import Atrous

RESNETS = (18, 34, 50, 101, 152)
DEEP_STEM = {"timm/resnet50c": 50}
_STAGES = (1, 2, 3, 4, 3, 3, 1)  # blocks of MobileNet-V2's stages
_ASIDE = "@aside."

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
    return (*rules, Rule(rf"(features\.{number}\..*)", rf"{_ASIDE}\1"))


def _timm_mobilenet_v2() -> tuple[Rule, ...]:
    """`blocks.S.B.conv_pw`, `conv_dw`, `conv_pwl` in `layerS.B.conv.K.conv|bn`; conv_head and its norm are aside."""
    rules = [Rule(r"conv_stem\.(.*)", r"conv1.conv.\1"), Rule(r"bn1\.(.*)", r"conv1.bn.\1")]
    for stage in range(len(_STAGES)):
        layers = ("conv_dw", "conv_pw") if stage == 0 else ("conv_pw", "conv_dw", "conv_pwl")
        for k, layer in enumerate(layers):
            theirs = rf"layer{stage + 1}.\1.conv.{k}"
            rules.append(Rule(rf"blocks\.{stage}\.(\d)\.{layer}\.(.*)", rf"{theirs}.conv.\2"))
            rules.append(Rule(rf"blocks\.{stage}\.(\d)\.bn{k + 1}\.(.*)", rf"{theirs}.bn.\2"))
    return (*rules, Rule(r"((?:conv_head|bn2)\..*)", rf"{_ASIDE}\1"))


@dataclass(frozen=True)
class Bridge:
    """A backbone's place in MMSegmentation.

    Args:
        spec: of our backbone.
        config: of MMSegmentation's backbone, without `init_cfg`.
        rules: from our tensors' names to theirs; `@aside.` begins the names of those that have no place there.
        channels: of each map that the backbone gives, finest first.
        strides: of each map, input pixels per pixel.
    """

    spec: BackboneSpec
    config: dict[str, Any]
    rules: tuple[Rule, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def to_framework(self, backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tensors under MMSegmentation's names, and under ours those that have no place there.

        Raises:
            CheckpointError: a tensor without a rule.
        """
        renamed = rename(backbone.net.state_dict(), self.rules, backbone.spec.name).tensors
        aside = {k.removeprefix(_ASIDE): t for k, t in renamed.items() if k.startswith(_ASIDE)}
        return {k: t for k, t in renamed.items() if not k.startswith(_ASIDE)}, aside

    def from_framework(self, tensors: Mapping[str, Tensor], aside: Mapping[str, Tensor]) -> Backbone:
        """Our backbone with a trained backbone's tensors, and those that had no place there put back.

        Raises:
            CheckpointError: tensors that are missing, foreign or of another shape, by name.
        """
        backbone = build_backbone(self.spec.name, arguments=self.spec.arguments).at(self.spec.feature)
        own = backbone.net.state_dict()
        theirs = rename(own, self.rules, self.spec.name).tensors
        ours = dict(zip(theirs, own, strict=True))  # in the same order: no rule leaves a tensor out
        state = {ours.get(name, name): tensor.cpu() for name, tensor in tensors.items()}
        load_strictly(backbone, state | dict(aside), source="the segmentation model's backbone")
        backbone.spec = self.spec
        return backbone


def build_bridge(
    spec: BackboneSpec, *, output_stride: int = 32, atrous: Atrous = "exact", frozen: bool = False
) -> Bridge:
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


def adopt_bridge(spec: BackboneSpec, config: Mapping[str, Any]) -> Bridge:
    """The bridge into the backbone of a user's own config.

    Args:
        spec: of our backbone.
        config: of MMSegmentation's backbone; it is taken as it is.

    Raises:
        ValueError: a backbone without key rules, or one that the net does not fit.
    """
    own = build_bridge(spec)
    kinds = {"StillroomResNet": "ResNet", "StillroomResNetV1c": "ResNetV1c", "StillroomMobileNetV2": "MobileNetV2"}
    kind = str(config["type"])
    fits, given = kinds.get(own.config["type"], own.config["type"]), kinds.get(kind, kind)
    deep = given == "ResNetV1c" or (given == "ResNet" and config.get("deep_stem", False))
    if given in ("ResNet", "ResNetV1c") and fits in ("ResNet", "ResNetV1c") and deep != (fits == "ResNetV1c"):
        stems = ("three 3x3 convolutions", "one 7x7 convolution")
        theirs, ours = stems if deep else stems[::-1]
        raise ValueError(f"{kind} begins with {theirs}, {spec.name} with {ours}: take ResNet{'' if deep else 'V1c'}")
    if given != fits:
        raise ValueError(f"{spec.name} fits MMSegmentation's {fits}, the config's backbone is {kind}")
    return Bridge(spec, dict(config), own.rules, own.channels, own.strides)


def _mobilenet(native: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "StillroomMobileNetV2", "out_indices": (1, 2, 4, 6), **native}


def _bridge(spec: BackboneSpec, config: dict[str, Any], rules: tuple[Rule, ...], output_stride: int) -> Bridge:
    strides = tuple(min(level.stride, output_stride) for level in spec.levels)
    return Bridge(spec, config, rules, tuple(level.channels for level in spec.levels), strides)


def _wrapped(spec: BackboneSpec, output_stride: int, frozen: bool) -> Bridge:
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
            f"{spec.name} cannot be dilated to stride {output_stride} ({error}): say --output-stride {coarsest}"
        ) from error
    config = {"type": "StillroomBackbone", "name": spec.name, "arguments": arguments, "frozen": frozen}
    rules = (Rule(r"(.*)", r"net.net.\1"),)
    return Bridge(spec, config, rules, tuple(lv.channels for lv in levels), tuple(lv.stride for lv in levels))


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
            assert_loaded(model.backbone, torch.load(self.file, map_location="cpu", weights_only=True))


def assert_loaded(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Check that a built net holds exactly these tensors, to the bit.

    Raises:
        CheckpointError: tensors that are missing, foreign or differ, by name.
    """
    state = net.state_dict()
    wrong = sorted(state.keys() ^ tensors.keys())
    wrong += sorted(k for k in state.keys() & tensors.keys() if not state[k].cpu().equal(tensors[k].cpu()))
    if wrong:
        more = ", ..." if len(wrong) > 5 else ""
        raise CheckpointError(
            f"{len(wrong)} of {len(state)} tensors of the segmentation model's backbone are not the checkpoint's: "
            f"{', '.join(wrong[:5])}{more}"
        )
