"""torchvision's detectors, built on a backbone of ours."""

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from stillroom.backbone import Backbone, BackboneSpec
from stillroom.convert.bridge import Bridge
from stillroom.convert.keys import Rule
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.freeze import FreezableModule, FrozenPart, frozen_part
from stillroom.det_transfer.levels import (
    ASPECT_RATIOS,
    anchor_sides,
    c4_level,
    check_one_stride,
    has_one_stride,
    pyramid_inputs,
    pyramid_strides,
)

NUM_GROUPS = 32


class BackboneMaps(FreezableModule):
    """A backbone as the body of a detector: images (b, 3, h, w) -> some of its maps by name, finest first.

    Args:
        backbone: of ours.
        indices: of the maps to return.
        freeze: the part of the backbone that is frozen.
    """

    def __init__(self, backbone: Backbone, indices: tuple[int, ...], freeze: FrozenPart) -> None:
        super().__init__(freeze)
        self.backbone = backbone
        self.indices = indices

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.backbone(images).maps
        return OrderedDict((str(number), maps[index]) for number, index in enumerate(self.indices))


class SimplePyramid(nn.Module):
    """A pyramid from a single map, at 4, 2, 1 and 1/2 of its resolution, for nets of one stride.

    Args:
        channels: of the map.
        dim: channels of every level.
        scales: resolution of each level over the map's.

    Reference: Li et al., Exploring Plain Vision Transformer Backbones for Object Detection, ECCV 2022, section 3.
    """

    def __init__(self, channels: int, dim: int, scales: tuple[float, ...]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(
                *rescale(channels, scale),
                nn.Conv2d(channels // max(1, int(scale)), dim, 1, bias=False),
                LayerNorm2d(dim, eps=1e-6),
                nn.Conv2d(dim, dim, 3, padding=1, bias=False),
                LayerNorm2d(dim, eps=1e-6),
            )
            for scale in scales
        )
        self.more = LastLevelMaxPool()

    def forward(self, maps: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        (last,) = maps.values()
        levels = [level(last) for level in self.levels]
        levels, names = self.more(levels, [], [str(number) for number in range(len(levels))])
        return OrderedDict(zip(names, levels, strict=True))


def rescale(channels: int, scale: float) -> list[nn.Module]:
    """Layers that change a map's resolution by 4, 2, 1 or 1/2; each doubling halves the channels."""
    match scale:
        case 4.0:
            half = channels // 2
            first = [nn.ConvTranspose2d(channels, half, 2, 2), LayerNorm2d(half, eps=1e-6), nn.GELU()]
            return [*first, nn.ConvTranspose2d(half, channels // 4, 2, 2)]
        case 2.0:
            return [nn.ConvTranspose2d(channels, channels // 2, 2, 2)]
        case 1.0:
            return []
        case _:
            return [nn.MaxPool2d(2, 2)]


class Pyramid(nn.Module):
    """Body and pyramid together, as the backbone of torchvision's detectors."""

    def __init__(self, body: BackboneMaps, fpn: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.body, self.fpn, self.out_channels = body, fpn, out_channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return self.fpn(self.body(images))


class SingleMap(nn.Module):
    """The stride-16 map of a ResNet without its last stage, as the backbone of torchvision's detectors."""

    def __init__(self, body: BackboneMaps, out_channels: int) -> None:
        super().__init__()
        self.body, self.out_channels = body, out_channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return self.body(images)


class LastStageHead(FreezableModule):
    """The last stage of a ResNet as a box head: (n, c, 14, 14) -> (n, d).

    Args:
        layer4: the stage, without its last activation.
        last_activation: the stage's last activation.
        freeze: the part of the stage that is frozen.
    """

    def __init__(self, layer4: nn.Module, last_activation: nn.Module, freeze: FrozenPart) -> None:
        super().__init__(freeze)
        self.layer4, self.last_activation = layer4, last_activation

    def forward(self, boxes: Tensor) -> Tensor:
        return self.last_activation(self.layer4(boxes)).mean(dim=(2, 3))


def build_detector(config: DetectConfig, backbone: Backbone, num_classes: int) -> tuple[nn.Module, Bridge]:
    """Build a detector with new weights around a backbone, and the bridge to the backbone in it.

    Args:
        config: of a single run.
        backbone: of ours; it becomes a part of the detector.
        num_classes: without background.

    Raises:
        ValueError: a backbone that the neck does not fit.
    """
    if config.neck == "c4":
        return build_c4(config, backbone, num_classes)
    spec = backbone.spec
    indices, strides = pyramid_inputs(spec, config), pyramid_strides(spec, config)
    body = BackboneMaps(backbone, indices, frozen_part(config))
    channels = [spec.levels[index].channels for index in indices]
    retina = config.detector == "retinanet"
    if has_one_stride(spec):
        check_one_stride(spec, config)
        scales = tuple(spec.levels[0].stride / stride for stride in strides[:-1])
        fpn: nn.Module = SimplePyramid(channels[0], config.fpn_dim, scales)
    else:
        extra_levels = LastLevelP6P7(config.fpn_dim, config.fpn_dim) if retina else LastLevelMaxPool()
        norm = partial(nn.GroupNorm, NUM_GROUPS) if config.fpn_norm == "gn" else None
        fpn = FeaturePyramidNetwork(channels, config.fpn_dim, extra_levels, norm_layer=norm)
    pyramid = Pyramid(body, fpn, config.fpn_dim)
    sides = [tuple(of_level) for of_level in anchor_sides(spec, config)]
    anchors = AnchorGenerator(tuple(sides), (ASPECT_RATIOS,) * len(sides))
    rules = (Rule(r"(.*)", r"backbone.body.backbone.net.\1"),)
    bridge = Bridge(spec=spec, rules=rules, prefixes=("backbone.body.backbone.",))
    images = image_arguments(spec, config)
    if retina:
        model: nn.Module = RetinaNet(pyramid, num_classes + 1, anchor_generator=anchors, **images)
        return model, bridge
    names = [str(number) for number in range(len(sides) - 1)]
    two_stages = {
        "rpn_anchor_generator": anchors,
        "box_roi_pool": MultiScaleRoIAlign(names, 7, 2),
        "box_head": TwoMLPHead(config.fpn_dim * 7 * 7, config.box_dim),
        "box_predictor": FastRCNNPredictor(config.box_dim, num_classes + 1),
        "box_batch_size_per_image": config.rois,
    }
    if config.detector == "faster-rcnn":
        return FasterRCNN(pyramid, **two_stages, **images), bridge
    masks = {
        "mask_roi_pool": MultiScaleRoIAlign(names, 14, 2),
        "mask_head": MaskRCNNHeads(config.fpn_dim, (config.fpn_dim,) * 4, 1),
        "mask_predictor": MaskRCNNPredictor(config.fpn_dim, config.fpn_dim, num_classes + 1),
    }
    return MaskRCNN(pyramid, **two_stages, **masks, **images), bridge


def build_c4(config: DetectConfig, backbone: Backbone, num_classes: int) -> tuple[nn.Module, Bridge]:
    """Build Faster R-CNN on the stride-16 map, with the last stage as box head; see `build_detector`.

    Reference: Ren et al., Faster R-CNN, NeurIPS 2015; with ResNets: He et al., CVPR 2016, appendix A.
    """
    spec, level = backbone.spec, c4_level(backbone.spec)
    net: Any = backbone.net
    part = frozen_part(config)
    activation = backbone.last_activation
    assert activation is not None, "a ResNet ends in a ReLU"
    head = LastStageHead(net.layer4, activation, part)
    net.layer4 = nn.Identity()
    sides = [tuple(of_level) for of_level in anchor_sides(spec, config)]
    if config.detector == "mask-rcnn":
        raise ValueError("--detector mask-rcnn takes a pyramid under torchvision: pass --neck fpn")
    model = FasterRCNN(
        SingleMap(BackboneMaps(backbone, (2,), part), level.channels),
        rpn_anchor_generator=AnchorGenerator(tuple(sides), (ASPECT_RATIOS,)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
        box_head=head,
        box_predictor=FastRCNNPredictor(spec.levels[3].channels, num_classes + 1),
        box_batch_size_per_image=config.rois,
        **image_arguments(spec, config),
    )
    rules = (
        Rule(r"(layer4\..*)", r"roi_heads.box_head.\1"),
        Rule(r"(.*)", r"backbone.body.backbone.net.\1"),
    )
    return model, Bridge(spec=spec, rules=rules, prefixes=("backbone.body.backbone.", "roi_heads.box_head."))


def image_arguments(spec: BackboneSpec, config: DetectConfig) -> dict[str, Any]:
    """Arguments for the detector's own resizing and normalisation: the checkpoint's mean and std, on pixels 0 to 1."""
    low, high = spec.input.value_range
    span = high - low
    coarsest = pyramid_strides(spec, config)[-2] if config.neck == "fpn" else 16
    return {
        "min_size": config.train_sizes,
        "max_size": config.max_size,
        "image_mean": [(value - low) / span for value in spec.input.mean],
        "image_std": [value / span for value in spec.input.std],
        "size_divisible": max(32, coarsest),
    }


def set_image_sizes(model: Any, sizes: tuple[int, ...]) -> None:
    """Set the short sides, pixels, that a detector resizes to: drawn at random in training, else the last one."""
    model.transform.min_size = sizes


def boxes_in_float32(model: Any) -> None:
    """Keep anchors, and the outputs that move them, in float32: above 512 pixels bfloat16 has steps of 4 pixels."""
    one_stage = isinstance(model, RetinaNet)
    anchors = (model if one_stage else model.rpn).anchor_generator
    anchors.register_forward_pre_hook(lambda _anchors, inputs: (inputs[0], empty_float32(inputs[1])))
    for layer in [model.head] if one_stage else [model.rpn.head, model.roi_heads.box_predictor]:
        layer.register_forward_hook(lambda _layer, _inputs, output: to_float32(output))


def empty_float32(maps: list[Tensor]) -> list[Tensor]:
    """Maps of the same shape in float32, without values: anchors depend on shape, type and device alone."""
    return [torch.empty_like(map_, dtype=torch.float32) for map_ in maps]


def to_float32(output: Any) -> Any:
    """Convert tensors, also those in tuples, lists and dicts, to float32."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {name: to_float32(part) for name, part in output.items()}
    return type(output)(to_float32(part) for part in output)


def autocast(config: DetectConfig, device: torch.device) -> torch.autocast:
    """The autocast context of the forward pass."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.amp == "bf16")
