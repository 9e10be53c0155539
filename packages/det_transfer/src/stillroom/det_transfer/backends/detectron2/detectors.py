"""Detectors on our backbones as LazyConfigs of Detectron2."""

import json
from typing import Any

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, BasicStem, BottleneckBlock, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN, RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    Res5ROIHeads,
    StandardROIHeads,
)
from omegaconf import DictConfig

from stillroom.backbone import BackboneSpec
from stillroom.convert.bridge import UNUSED, Bridge
from stillroom.convert.framework_nets import detectron2_rules, native_depth, pixel_statistics
from stillroom.convert.keys import Rule
from stillroom.det_transfer.backends.detectron2.nets import (
    PATCH,
    ExtraNorm,
    OneMoreLevel,
    PaddedPyramid,
    StillroomBackbone,
)
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.freeze import frozen_part
from stillroom.det_transfer.levels import (
    ASPECT_RATIOS,
    anchor_sides,
    c4_level,
    check_one_stride,
    has_one_stride,
    level_number,
    pyramid_inputs,
    pyramid_strides,
)

FREEZE_ALL = 5
"""The value of Detectron2's `freeze_at` that freezes the stem and all four stages."""
BGR_MEAN = (103.53, 116.28, 123.675)
"""ImageNet's mean, pixels from 0 to 255."""
RGB_MEAN, RGB_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

# Matching thresholds of the first and the second stage, as in Detectron2's configs and the papers behind them.
RPN_MATCH = {"thresholds": [0.3, 0.7], "labels": [0, -1, 1], "allow_low_quality_matches": True}
BOX_MATCH = {"thresholds": [0.5], "labels": [0, 1], "allow_low_quality_matches": False}
RETINA_MATCH = {"thresholds": [0.4, 0.5], "labels": [0, -1, 1], "allow_low_quality_matches": True}
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def build_model(config: DetectConfig, spec: BackboneSpec, num_classes: int, synced: bool) -> tuple[DictConfig, Bridge]:
    """Describe the detector as a LazyConfig, and build the bridge from our backbone into it.

    Args:
        config: of a single run.
        spec: of its backbone.
        num_classes: without background.
        synced: whether batch norm statistics are over all processes.

    Raises:
        ValueError: a backbone that the neck cannot take.
    """
    norm = "FrozenBN" if frozen_part(config) != "nothing" else "SyncBN" if synced else "BN"
    if config.neck == "c4":
        return build_c4(config, spec, num_classes, norm)
    backbone, bridge = build_pyramid(config, spec, norm)
    features = [f"p{level_number(stride)}" for stride in pyramid_strides(spec, config)]
    if config.detector == "retinanet":
        return describe_retinanet(config, spec, num_classes, backbone, features), bridge
    levels = features[:-1]
    scales = [1 / stride for stride in pyramid_strides(spec, config)[:-1]]
    heads = L(StandardROIHeads)(
        num_classes=num_classes,
        batch_size_per_image=config.rois,
        positive_fraction=0.25,
        proposal_matcher=L(Matcher)(**BOX_MATCH),
        box_in_features=levels,
        box_pooler=L(ROIPooler)(output_size=7, scales=scales, sampling_ratio=0, pooler_type="ROIAlignV2"),
        box_head=L(FastRCNNConvFCHead)(
            input_shape=L(ShapeSpec)(channels=config.fpn_dim, height=7, width=7),
            conv_dims=[],
            fc_dims=[config.box_dim, config.box_dim],
        ),
        box_predictor=describe_box_predictor(config.box_dim, num_classes),
    )
    if config.detector == "mask-rcnn":
        heads.mask_in_features = levels
        heads.mask_pooler = L(ROIPooler)(output_size=14, scales=scales, sampling_ratio=0, pooler_type="ROIAlignV2")
        heads.mask_head = L(MaskRCNNConvUpsampleHead)(
            input_shape=L(ShapeSpec)(channels=config.fpn_dim, width=14, height=14),
            num_classes=num_classes,
            conv_dims=[config.fpn_dim] * 5,
        )
    model = L(GeneralizedRCNN)(
        backbone=backbone,
        proposal_generator=describe_rpn(config, spec, features, config.fpn_dim, (2000, 1000), (1000, 1000)),
        roi_heads=heads,
        **normalization(config, spec),
    )
    return model, bridge


def build_pyramid(config: DetectConfig, spec: BackboneSpec, norm: str) -> tuple[DictConfig, Bridge]:
    """Describe a feature pyramid on Detectron2's own ResNet, or on the wrapper of our net."""
    retina = config.detector == "retinanet"
    if has_one_stride(spec):
        check_one_stride(spec, config)
        strides = pyramid_strides(spec, config)[:-1]
        pyramid = L(PaddedPyramid)(
            net=describe_wrapper(spec, [PATCH], config, norm),
            in_feature=PATCH,
            out_channels=config.fpn_dim,
            scale_factors=[spec.levels[0].stride / stride for stride in strides],
            top_block=L(OneMoreLevel)(in_feature=f"p{level_number(strides[-1])}"),
        )
        return pyramid, wrapper_bridge(spec, "backbone.net.")
    strides = tuple(spec.levels[index].stride for index in pyramid_inputs(spec, config))
    depth = native_depth(spec)
    if depth is None:
        features = [f"level{level_number(stride)}" for stride in strides]
        bottom_up = describe_wrapper(spec, features, config, norm)
        bridge = wrapper_bridge(spec, "backbone.bottom_up.")
    else:
        features = [f"res{level_number(stride)}" for stride in strides]
        bottom_up = describe_resnet(depth, norm, features)
        bottom_up.freeze_at = FREEZE_ALL if config.frozen else 0
        rules = detectron2_rules("backbone.bottom_up.", None, norm == "FrozenBN")
        bridge = Bridge(spec=spec, rules=rules, prefixes=("backbone.bottom_up.",))
    last = f"p{level_number(strides[-1])}"
    fpn_norm = "GN" if config.fpn_norm == "gn" else ""
    top_block = (
        L(LastLevelP6P7)(in_channels=config.fpn_dim, out_channels=config.fpn_dim, in_feature=last)
        if retina
        else L(OneMoreLevel)(in_feature=last)
    )
    pyramid = L(FPN)(
        bottom_up=bottom_up, in_features=features, out_channels=config.fpn_dim, norm=fpn_norm, top_block=top_block
    )
    return pyramid, bridge


def build_c4(config: DetectConfig, spec: BackboneSpec, num_classes: int, norm: str) -> tuple[DictConfig, Bridge]:
    """Describe Faster or Mask R-CNN on the stride-16 map of Detectron2's ResNet, with its last stage as box head.

    Raises:
        ValueError: a net that is not one of Detectron2's ResNets; `--legacy` with a net other than ResNet-18.
    """
    level, depth, legacy = c4_level(spec), native_depth(spec), config.legacy != "none"
    if depth is None:
        raise ValueError(f"--neck c4 needs a ResNet that Detectron2 has, {spec.name} is not one: pass --neck fpn")
    if legacy and depth != 18:
        raise ValueError(f"--legacy with --neck c4 needs torchvision/resnet18, as in KDEP, not {spec.name}")
    dim = spec.levels[3].channels
    num_blocks = {18: 2, 34: 3, 50: 3, 101: 3, 152: 3}[depth]
    stage: dict[str, Any] = {"in_channels": level.channels, "out_channels": dim, "norm": norm}
    if legacy or depth >= 50:
        stage |= {"block_class": BottleneckBlock, "bottleneck_channels": 512, "stride_in_1x1": config.stride_in_1x1}
        num_blocks = 3
    else:
        stage |= {"block_class": BasicBlock}
    res5 = L(ResNet.make_stage)(num_blocks=num_blocks, stride_per_block=[2] + [1] * (num_blocks - 1), **stage)
    if legacy:
        res5 = L(ExtraNorm)(stage=res5, norm=L(get_norm)(norm=norm, out_channels=dim))
    heads = L(Res5ROIHeads)(
        num_classes=num_classes,
        batch_size_per_image=config.rois,
        positive_fraction=0.25,
        proposal_matcher=L(Matcher)(**BOX_MATCH),
        in_features=["res4"],
        pooler=L(ROIPooler)(output_size=14, scales=[1 / 16], sampling_ratio=0, pooler_type="ROIAlignV2"),
        res5=res5,
        box_predictor=describe_box_predictor(dim, num_classes),
    )
    if config.detector == "mask-rcnn":
        heads.mask_head = L(MaskRCNNConvUpsampleHead)(
            input_shape=L(ShapeSpec)(channels=dim, width=14, height=14), num_classes=num_classes, conv_dims=[256]
        )
    model = L(GeneralizedRCNN)(
        backbone=describe_resnet(depth, norm, ["res4"]),
        proposal_generator=describe_rpn(config, spec, ["res4"], level.channels, (12000, 6000), (2000, 1000)),
        roi_heads=heads,
        **normalization(config, spec),
    )
    head = "roi_heads.res5.stage." if legacy else "roi_heads.res5."
    rules = detectron2_rules("backbone.", head, norm == "FrozenBN")
    fresh = None
    if legacy:  # ResNet-18's blocks have no third convolution, and their first is 3x3
        rules = (Rule(r"(layer4\.\d+\.conv1\.weight)", rf"{UNUSED}\1"), *rules)
        fresh = r"roi_heads\.res5\.stage\.(?:2\..*|\d\.conv3\..*|\d\.conv1\.weight)"
    return model, Bridge(spec=spec, rules=rules, prefixes=("backbone.", head), excluded=fresh)


def describe_retinanet(
    config: DetectConfig, spec: BackboneSpec, num_classes: int, backbone: DictConfig, features: list[str]
) -> DictConfig:
    """Describe RetinaNet on a pyramid."""
    sides = anchor_sides(spec, config)
    return L(RetinaNet)(
        backbone=backbone,
        head=L(RetinaNetHead)(
            input_shape=[L(ShapeSpec)(channels=config.fpn_dim)] * len(features),
            num_classes=num_classes,
            conv_dims=[config.fpn_dim] * 4,
            prior_prob=0.01,
            num_anchors=len(sides[0]) * len(ASPECT_RATIOS),
        ),
        anchor_generator=describe_anchors(config, spec),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        anchor_matcher=L(Matcher)(**RETINA_MATCH),
        num_classes=num_classes,
        head_in_features=features,
        focal_loss_alpha=0.25,
        focal_loss_gamma=2.0,
        **normalization(config, spec),
    )


def describe_resnet(depth: int, norm: str, features: list[str]) -> DictConfig:
    """Describe Detectron2's ResNet with torchvision's layers: a bottleneck has its stride in the 3x3 convolution."""
    stride_in_3x3 = {"stride_in_1x1": False} if depth >= 50 else {}
    return L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm=norm),
        stages=L(ResNet.make_default_stages)(depth=depth, norm=norm, **stride_in_3x3),
        out_features=features,
    )


def describe_wrapper(spec: BackboneSpec, features: list[str], config: DetectConfig, norm: str) -> DictConfig:
    """Describe the wrapper of our net."""
    return L(StillroomBackbone)(
        name=spec.name,
        # Text, in which Detectron2 neither calls a `_target_` nor fills in ${...}.
        arguments=json.dumps(spec.arguments).replace("$", r"\u0024"),
        out_features=features,
        freeze=frozen_part(config),
        synced=norm == "SyncBN",
    )


def wrapper_bridge(spec: BackboneSpec, prefix: str) -> Bridge:
    """The bridge into the wrapper: our names behind a prefix."""
    return Bridge(spec=spec, rules=(Rule(r"(.*)", rf"{prefix}net.net.\1"),), prefixes=(prefix,))


def describe_rpn(
    config: DetectConfig,
    spec: BackboneSpec,
    features: list[str],
    channels: int,
    before_nms: tuple[int, int],
    after_nms: tuple[int, int],
) -> DictConfig:
    """Describe the first stage, the region proposal network.

    Args:
        config: of a single run.
        spec: of its backbone.
        features: names of the maps.
        channels: of the maps.
        before_nms, after_nms: boxes kept before and after non-maximum suppression, in training and in evaluation.
    """
    sides = anchor_sides(spec, config)
    return L(RPN)(
        in_features=features,
        head=L(StandardRPNHead)(in_channels=channels, num_anchors=len(sides[0]) * len(ASPECT_RATIOS)),
        anchor_generator=describe_anchors(config, spec),
        anchor_matcher=L(Matcher)(**RPN_MATCH),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=before_nms,
        post_nms_topk=after_nms,
        nms_thresh=0.7,
    )


def describe_anchors(config: DetectConfig, spec: BackboneSpec) -> DictConfig:
    """Describe the anchors of every level."""
    strides = [16] if config.neck == "c4" else list(pyramid_strides(spec, config))
    return L(DefaultAnchorGenerator)(
        sizes=anchor_sides(spec, config), aspect_ratios=list(ASPECT_RATIOS), strides=strides, offset=0.0
    )


def describe_box_predictor(dim: int, num_classes: int) -> DictConfig:
    """Describe the layers that predict class and box from the feature of a box."""
    return L(FastRCNNOutputLayers)(
        input_shape=L(ShapeSpec)(channels=dim, height=1, width=1),
        test_score_thresh=0.05,
        box2box_transform=L(Box2BoxTransform)(weights=BOX_WEIGHTS),
        num_classes=num_classes,
    )


def normalization(config: DetectConfig, spec: BackboneSpec) -> dict[str, Any]:
    """The checkpoint's mean and std for pixels from 0 to 255, and its channel order; with --legacy, KDEP's."""
    if config.legacy == "std-1":
        return {"pixel_mean": list(BGR_MEAN), "pixel_std": [1.0, 1.0, 1.0], "input_format": "BGR"}
    if config.legacy == "rgb-mean":
        return {"pixel_mean": list(RGB_MEAN), "pixel_std": list(RGB_STD), "input_format": "BGR"}
    mean, std = pixel_statistics(spec.input)
    return {"pixel_mean": mean, "pixel_std": std, "input_format": spec.input.channel_order.upper()}
