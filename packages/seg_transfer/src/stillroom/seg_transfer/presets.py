"""Presets, each documented as a lab note. Every field can be changed by its flag."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillroom.seg_transfer.config import SegmentConfig

VOC: dict[str, Any] = {"layout": "voc2012aug", "steps": 33_068, "scale": (0.5, 1.5)}
CITYSCAPES: dict[str, Any] = {"layout": "cityscapes", "steps": 37_187, "scale": (0.5, 2.0)}
ADE20K: dict[str, Any] = {"layout": "ade20k", "steps": 126_312, "scale": (0.5, 2.0)}
WINDOWS: dict[str, Any] = {"evaluation": "slide", "flip": True}


def pspnet(*, checkpoint: tuple[str, ...], out: Path) -> SegmentConfig:
    """PSPNet on a backbone dilated to stride 8, auxiliary head on the third level (Zhao et al., CVPR 2017).

    SGD, lr 0.01 (head x10), poly 0.9, weight decay 1e-4, batch 16, crop 512: KDEP's setting (He et al., CVPR 2022).
    """
    return SegmentConfig(checkpoint=checkpoint, out=out)


def pspnet_voc(*, checkpoint: tuple[str, ...], out: Path) -> SegmentConfig:
    """pspnet on VOC 2012 (aug): 50 epochs of 10,582 images, scales 0.5 to 1.5; evaluated in windows, and mirrored."""
    return replace(pspnet(checkpoint=checkpoint, out=out), **VOC, **WINDOWS)


def pspnet_cityscapes(*, checkpoint: tuple[str, ...], out: Path) -> SegmentConfig:
    """pspnet on Cityscapes: 200 epochs of 2,975 images; evaluated in windows, and mirrored."""
    return replace(pspnet(checkpoint=checkpoint, out=out), **CITYSCAPES, **WINDOWS)


def pspnet_ade20k(*, checkpoint: tuple[str, ...], out: Path) -> SegmentConfig:
    """pspnet on ADE20K: 100 epochs of 20,210 images; evaluated in windows, and mirrored."""
    return replace(pspnet(checkpoint=checkpoint, out=out), **ADE20K, **WINDOWS)


def fcn(*, checkpoint: tuple[str, ...], out: Path) -> SegmentConfig:
    """FCN head of two 3x3 convolutions on stride 8 (Long et al., CVPR 2015), else as pspnet."""
    return SegmentConfig(checkpoint=checkpoint, out=out, head="fcn")


def deeplabv3plus(*, checkpoint: tuple[str, ...], out: Path) -> SegmentConfig:
    """DeepLabV3+ (Chen et al., ECCV 2018): atrous pyramid on stride 8, joined by the finest level; else as pspnet."""
    return SegmentConfig(checkpoint=checkpoint, out=out, head="deeplabv3plus")


def upernet(*, checkpoint: tuple[str, ...], out: Path) -> SegmentConfig:
    """UPerNet (Xiao et al., ECCV 2018) on four undilated levels; the usual head for ViT, Swin, ConvNeXt."""
    return SegmentConfig(checkpoint=checkpoint, out=out, head="upernet", output_stride=32)


def linear(*, checkpoint: tuple[str, ...], out: Path) -> SegmentConfig:
    """Dense linear probe: batch norm and a 1x1 convolution on frozen features of stride 8.

    How self-supervised backbones are compared (DINOv2, Oquab et al., 2023, section 7.4). Only the head learns, at rate
    0.01 x 10.
    """
    return SegmentConfig(checkpoint=checkpoint, out=out, head="linear", frozen=True, aux_weight=0.0, weight_decay=0.0)


def legacy_kdep_r18(*, checkpoint: tuple[str, ...], out: Path) -> SegmentConfig:
    """KDEP's PSPNet of ResNet-18 on VOC 2012 (aug), in its settings: only for comparison with its numbers.

    50 epochs of 10,582 images, batch 16: 33,068 steps. Only the second convolution of each block is dilated, bilinear
    resizing aligns corners, windows overlap by a third, predictions for mirrored images are averaged in. The decoder is
    MMSegmentation's PSPHead, whose pooled branches are 512 wide; KDEP's are 128 wide.
    """
    return SegmentConfig(checkpoint=checkpoint, out=out, atrous="second", align_corners=True, **VOC, **WINDOWS)


def legacy_kdep_mnv2(*, checkpoint: tuple[str, ...], out: Path) -> SegmentConfig:
    """KDEP's PSPNet of MobileNet-V2 on VOC 2012 (aug), in its settings: only for comparison with its numbers.

    No dilation: stride 32. No auxiliary head; its weight goes to the main loss, which counts 1.4 times. Else as
    legacy-kdep-r18.
    """
    return SegmentConfig(
        checkpoint=checkpoint,
        out=out,
        output_stride=32,
        aux_weight=0.0,
        main_weight=1.4,
        align_corners=True,
        **VOC,
        **WINDOWS,
    )


def legacy_kdep_r18_cityscapes(*, checkpoint: tuple[str, ...], out: Path) -> SegmentConfig:
    """KDEP's PSPNet of ResNet-18 on Cityscapes: 200 epochs of 2,975 images, wider scales; else as legacy-kdep-r18."""
    return replace(legacy_kdep_r18(checkpoint=checkpoint, out=out), **CITYSCAPES)


def legacy_kdep_r18_ade20k(*, checkpoint: tuple[str, ...], out: Path) -> SegmentConfig:
    """KDEP's PSPNet of ResNet-18 on ADE20K: 100 epochs of 20,210 images, wider scales; else as legacy-kdep-r18."""
    return replace(legacy_kdep_r18(checkpoint=checkpoint, out=out), **ADE20K)


def legacy_kdep_mnv2_cityscapes(*, checkpoint: tuple[str, ...], out: Path) -> SegmentConfig:
    """KDEP's PSPNet of MobileNet-V2 on Cityscapes: lr 0.006, 200 epochs, wider scales; else as legacy-kdep-mnv2."""
    return replace(legacy_kdep_mnv2(checkpoint=checkpoint, out=out), lr=0.006, **CITYSCAPES)


def legacy_kdep_mnv2_ade20k(*, checkpoint: tuple[str, ...], out: Path) -> SegmentConfig:
    """KDEP's PSPNet of MobileNet-V2 on ADE20K: 100 epochs, wider scales; else as legacy-kdep-mnv2."""
    return replace(legacy_kdep_mnv2(checkpoint=checkpoint, out=out), **ADE20K)


def smoke(
    *, checkpoint: tuple[str, ...] = ("random:torchvision/resnet18",), out: Path = Path("runs/smoke-seg")
) -> SegmentConfig:
    """A few steps of a small net, by default on the toy scenes: takes seconds, and shows only that it works."""
    return SegmentConfig(
        checkpoint=checkpoint,
        data=Path("data/toy/scenes"),
        out=out,
        channels=32,
        steps=4,
        batch_size=4,
        crop=96,
        log_every=1,
        save_every=2,
    )


PRESETS: dict[str, Callable[..., SegmentConfig]] = {
    "pspnet": pspnet,
    "pspnet-voc": pspnet_voc,
    "pspnet-cityscapes": pspnet_cityscapes,
    "pspnet-ade20k": pspnet_ade20k,
    "fcn": fcn,
    "deeplabv3plus": deeplabv3plus,
    "upernet": upernet,
    "linear": linear,
    "legacy-kdep-r18": legacy_kdep_r18,
    "legacy-kdep-r18-cityscapes": legacy_kdep_r18_cityscapes,
    "legacy-kdep-r18-ade20k": legacy_kdep_r18_ade20k,
    "legacy-kdep-mnv2": legacy_kdep_mnv2,
    "legacy-kdep-mnv2-cityscapes": legacy_kdep_mnv2_cityscapes,
    "legacy-kdep-mnv2-ade20k": legacy_kdep_mnv2_ade20k,
    "smoke": smoke,
}
