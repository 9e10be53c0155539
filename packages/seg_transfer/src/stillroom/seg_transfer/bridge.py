"""Map our backbones to MMSegmentation's: which net, which name for each tensor, and back."""

from stillroom.seg_transfer import quiet  # noqa: F401  # before anything imports MMSegmentation

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
from stillroom.convert.bridge import Bridge, assert_same
from stillroom.convert.framework_nets import segmentation_net
from stillroom.convert.keys import Rule
from stillroom.seg_transfer.nets import Atrous

OTHER_LAYERS = {
    "style": "pytorch",
    "avg_down": False,
    "base_channels": 64,
    "stem_channels": 64,
    "dcn": None,
    "plugins": None,
}
"""Settings that make MMSegmentation's ResNet another net under the same names, with the values that ours has."""


@dataclass(frozen=True, kw_only=True)
class SegBridge(Bridge):
    """The mapping of a backbone to MMSegmentation's.

    Args:
        config: of MMSegmentation's backbone, without `init_cfg`.
        channels: of each feature map, finest first.
        strides: of each feature map, input pixels per pixel.
        divisor: height and width must be multiples of it, pixels; evaluation images are padded.
    """

    config: dict[str, Any]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    divisor: int = 1


def build_bridge(
    spec: BackboneSpec, *, output_stride: int = 32, atrous: Atrous = "exact", frozen: bool = False
) -> SegBridge:
    """Choose MMSegmentation's net if it has the same layers, else the wrapper of ours.

    Args:
        spec: of our backbone.
        output_stride: of the last map, pixels; below the net's own the net is dilated.
        atrous: see `Atrous`.
        frozen: see `freeze`.

    Raises:
        ValueError: a net that cannot be dilated in this way, or has no levels.
    """
    native: dict[str, Any] = {"output_stride": output_stride, "frozen": frozen}
    if output_stride not in (8, 16, 32):
        raise ValueError(f"--output-stride is {output_stride}: 8, 16 or 32 pixels")
    net = segmentation_net(spec)
    if atrous == "second" and (net is None or net.arguments.get("depth") not in (18, 34) or output_stride != 8):
        raise ValueError(
            f"--atrous second is KDEP's PSPNet of ResNet-18 at stride 8, not {spec.name} at {output_stride}"
        )
    if net is not None:
        config = {"type": f"Stillroom{net.type}", **net.arguments, **native}
        config |= {"atrous": atrous} if net.type == "ResNet" else {}
        strides = tuple(min(level.stride, output_stride) for level in spec.levels)
        channels = tuple(level.channels for level in spec.levels)
        return SegBridge(spec=spec, rules=net.rules, config=config, channels=channels, strides=strides)
    if not spec.levels:
        raise ValueError(f"{spec.name} has no levels: a segmentation head needs feature maps")
    return _wrapped(spec, output_stride, frozen)


def adopt_bridge(spec: BackboneSpec, config: Mapping[str, Any]) -> SegBridge:
    """Build the bridge into the backbone of a user's config.

    Args:
        spec: of our backbone.
        config: of MMSegmentation's backbone; it is used unchanged.

    Raises:
        ValueError: a backbone without key rules, or one that the net does not fit.
    """
    bridge = build_bridge(spec)
    kinds = {"StillroomResNet": "ResNet", "StillroomResNetV1c": "ResNetV1c", "StillroomMobileNetV2": "MobileNetV2"}
    kind = str(config["type"]).removeprefix("mmseg.")
    expected, actual = kinds.get(bridge.config["type"], bridge.config["type"]), kinds.get(kind, kind)
    deep = actual == "ResNetV1c" or (actual == "ResNet" and config.get("deep_stem", False))
    if actual in ("ResNet", "ResNetV1c") and expected in ("ResNet", "ResNetV1c") and deep != (expected == "ResNetV1c"):
        stems = ("three 3x3 convolutions", "one 7x7 convolution")
        theirs, ours = stems if deep else stems[::-1]
        raise ValueError(f"{kind} begins with {theirs}, {spec.name} with {ours}: take ResNet{'' if deep else 'V1c'}")
    for name, standard in OTHER_LAYERS.items():
        if actual.startswith("ResNet") and config.get(name, standard) != standard:
            raise ValueError(f"the config's {kind} has {name}={config[name]!r}, {spec.name} has {name}={standard!r}")
    if actual != expected:
        raise ValueError(f"{spec.name} fits MMSegmentation's {expected}, the config's backbone is {kind}")
    return replace(bridge, config=dict(config))


def _wrapped(spec: BackboneSpec, output_stride: int, frozen: bool) -> SegBridge:
    arguments = dict(spec.arguments)
    coarsest = max(level.stride for level in spec.levels)
    if coarsest > output_stride:
        if not spec.name.startswith("timm/"):
            raise ValueError(
                f"{spec.name} cannot be dilated to stride {output_stride}: pass --output-stride {coarsest}"
            )
        arguments["output_stride"] = output_stride
    try:
        levels = build_backbone(spec.name, arguments=arguments).spec.levels
    except ValueError as error:  # nets without dilation, in timm's words
        if coarsest <= output_stride:
            raise
        raise ValueError(
            f"{spec.name} cannot be dilated to stride {output_stride}: pass --output-stride {coarsest}"
        ) from error
    config = {"type": "StillroomBackbone", "name": spec.name, "arguments": arguments, "frozen": frozen}
    return SegBridge(
        spec=spec,
        rules=(Rule(r"(.*)", r"net.net.\1"),),
        config=config,
        channels=tuple(level.channels for level in levels),
        strides=tuple(level.stride for level in levels),
        divisor=levels[0].stride if len({level.stride for level in levels}) == 1 else 1,  # ViT: whole patches
    )


@HOOKS.register_module()
class AssertLoaded(Hook):
    """Assert before the first step that the model's backbone holds the initial weights, tensor by tensor.

    Args:
        file: the tensors under MMSegmentation's names.
    """

    def __init__(self, file: str) -> None:
        self.file = file

    def before_train(self, runner: Runner) -> None:
        """Compare the tensors, unless the run was resumed after its first step."""
        if runner.iter == 0:
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            assert_same(model.backbone.state_dict(), torch.load(self.file, map_location="cpu", weights_only=True))
