"""A backbone as MMSegmentation's or Detectron2's own net: a file of weights, and the lines of config for it."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stillroom.backbone.atomic import write_file
from stillroom.backbone.features import Backbone
from stillroom.backbone.manifest import CheckpointError
from stillroom.backbone.spec import BackboneSpec
from stillroom.convert.bridge import Bridge
from stillroom.convert.flags import Framework
from stillroom.convert.framework_nets import detectron2_rules, native_depth, pixel_statistics, segmentation_net
from stillroom.convert.keys import Rule

SUFFIXES = {"mmsegmentation": ".py", "detectron2": ".yaml"}
"""Of the config beside the weights."""

MMSEGMENTATION = """\
# {net} as MMSegmentation's {type}. Merge these lines into a config of yours: they replace the net,
# its weights and its input, and nothing else. Its maps have {channels} channels: set in_channels of the heads.
# Images come as BGR, 0 to 255.
model = dict(
    pretrained=None,
    data_preprocessor=dict(type='SegDataPreProcessor', mean={mean}, std={std}, bgr_to_rgb={bgr_to_rgb}),
    backbone=dict(
        type='{type}',{arguments}
        norm_cfg=dict(type='BN', requires_grad=True),  # SyncBN on several GPUs
        init_cfg=dict(type='Pretrained', checkpoint={file!r}),
    ),
)
"""

DETECTRON2 = """\
# {net} as Detectron2's ResNet. cfg.merge_from_file(...) after a config of yours: these lines replace the net,
# its weights and its input, and nothing else. FrozenBN, Detectron2's default, keeps the statistics; SyncBN trains them.
VERSION: 2
MODEL:
  WEIGHTS: {file}
  PIXEL_MEAN: {mean}
  PIXEL_STD: {std}
  RESNETS:
    DEPTH: {depth}
    RES2_OUT_CHANNELS: {channels}
    STRIDE_IN_1X1: False
    NORM: FrozenBN
INPUT:
  FORMAT: {order}
"""


def write_framework_file(out: Path, backbone: Backbone, target: Framework) -> tuple[str, ...]:
    """Write the weights under the framework's names, and beside them `out` with the suffix of the config.

    Args:
        out: .pth; MMEngine's `init_cfg=dict(type='Pretrained', checkpoint=...)` or Detectron2's MODEL.WEIGHTS reads it.
        backbone: of a checkpoint.
        target: the framework.

    Returns:
        The names of the tensors that are left out, because the framework's net has no place for them.

    Raises:
        CheckpointError: a net that the framework does not have, another suffix, an existing config.
    """
    spec, config = backbone.spec, out.with_suffix(SUFFIXES[target])
    if out.suffix not in (".pth", ".pt"):
        raise CheckpointError(f"{out.name}: {target} reads .pth: pass a name that ends in .pth")
    if config.exists():
        raise CheckpointError(f"{config}, the config beside the weights, exists: choose another --out")
    rules, text = _mmsegmentation(spec, out) if target == "mmsegmentation" else _detectron2(spec, out)
    tensors, unused = Bridge(spec=spec, rules=rules).to_framework(backbone)
    # Detectron2 finds the names inside those of the whole detector only where the file asks for it.
    content: Mapping[str, Any] = tensors
    if target == "detectron2":
        content = {"model": tensors, "__author__": "stillroom", "matching_heuristics": True}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(out, buffer.getvalue())
    write_file(config, text)
    return tuple(unused)


def _mmsegmentation(spec: BackboneSpec, out: Path) -> tuple[tuple[Rule, ...], str]:
    net = segmentation_net(spec)
    if net is None:
        raise _without_counterpart(spec, "mmsegmentation", "ResNet-18 to ResNet-152, timm/resnet50c and MobileNet-V2")
    arguments = net.arguments | ({"style": "pytorch"} if net.type.startswith("ResNet") else {})
    mean, std = _rounded(spec)
    text = MMSEGMENTATION.format(
        net=spec.name,
        type=net.type,
        arguments="".join(f"\n        {name}={value!r}," for name, value in arguments.items()),
        channels=", ".join(str(level.channels) for level in spec.levels),
        mean=mean,
        std=std,
        bgr_to_rgb=spec.input.channel_order == "rgb",
        file=str(out.absolute()),
    )
    return net.rules, text


def _detectron2(spec: BackboneSpec, out: Path) -> tuple[tuple[Rule, ...], str]:
    depth = native_depth(spec)
    if depth is None:
        raise _without_counterpart(spec, "detectron2", "ResNet-18 to ResNet-152")
    mean, std = _rounded(spec)
    text = DETECTRON2.format(
        net=spec.name,
        file=json.dumps(str(out.absolute())),
        mean=mean,
        std=std,
        depth=depth,
        channels=spec.levels[0].channels,
        order=spec.input.channel_order.upper(),
    )
    return detectron2_rules(frozen=True), text  # norms that train begin their counters at 0


def _rounded(spec: BackboneSpec) -> tuple[list[float], list[float]]:
    mean, std = pixel_statistics(spec.input)
    return [round(value, 4) for value in mean], [round(value, 4) for value in std]


def _without_counterpart(spec: BackboneSpec, target: Framework, nets: str) -> CheckpointError:
    packages = {"mmsegmentation": "stillroom-seg-transfer", "detectron2": "stillroom-det-transfer"}
    net = f"{spec.name} {spec.arguments or ''}".strip()
    return CheckpointError(
        f"{net} has no counterpart with the same layers in {target}: {nets} of torchvision and timm have one, as built "
        f"without arguments; {packages[target]} trains other nets there"
    )
