"""Presets: runs that reproduce published recipes, each documented. A flag overrides any of their fields."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillroom.det_transfer.config import DetectConfig

VOC0712: dict[str, Any] = {
    "layout": "voc0712",
    "steps": 18_000,
    "warmup": 100,
    "train_sizes": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
}
"""Detectron2's schedule for VOC 2007 and 2012; sizes are short sides in pixels."""


def faster_rcnn_fpn(*, checkpoint: tuple[str, ...], out: Path) -> DetectConfig:
    """Faster R-CNN (Ren et al., NeurIPS 2015) with a feature pyramid (Lin et al., CVPR 2017), on any multi-level net.

    SGD, learning rate 0.02, batch 16, 90,000 steps, rate / 10 at 60,000 and 80,000, short side 640 to 800 pixels:
    Detectron2's 1x schedule, and with --layout coco2017 KDEP's setting on COCO 2017 (He et al., CVPR 2022).
    """
    return DetectConfig(checkpoint=checkpoint, out=out)


def faster_rcnn_fpn_voc(*, checkpoint: tuple[str, ...], out: Path) -> DetectConfig:
    """faster-rcnn-fpn on VOC 2007 and 2012: 18,000 steps, rate / 10 at 12,000 and 16,000, short side 480 to 800."""
    return DetectConfig(checkpoint=checkpoint, out=out, **VOC0712)


def faster_rcnn_c4(*, checkpoint: tuple[str, ...], out: Path) -> DetectConfig:
    """Faster R-CNN on the stride-16 map of a ResNet, with its last stage as box head; otherwise faster-rcnn-fpn."""
    return DetectConfig(checkpoint=checkpoint, out=out, neck="c4")


def faster_rcnn_c4_voc(*, checkpoint: tuple[str, ...], out: Path) -> DetectConfig:
    """faster-rcnn-c4 on VOC 2007 and 2012, the usual benchmark of self-supervised ResNets (MoCo, CVPR 2020)."""
    return DetectConfig(checkpoint=checkpoint, out=out, neck="c4", **VOC0712)


def retinanet_fpn(*, checkpoint: tuple[str, ...], out: Path) -> DetectConfig:
    """RetinaNet (Lin et al., ICCV 2017): one stage, focal loss, pyramid from stride 8; learning rate 0.01."""
    return DetectConfig(checkpoint=checkpoint, out=out, detector="retinanet", lr=0.01)


def mask_rcnn_fpn(*, checkpoint: tuple[str, ...], out: Path) -> DetectConfig:
    """Mask R-CNN (He et al., ICCV 2017), for annotations with masks; otherwise faster-rcnn-fpn."""
    return DetectConfig(checkpoint=checkpoint, out=out, detector="mask-rcnn")


def legacy_kdep_r18_c4(*, checkpoint: tuple[str, ...], out: Path) -> DetectConfig:
    """KDEP's Faster R-CNN of ResNet-18, C4, on VOC 2007 and 2012, with its quirks: to compare with its numbers.

    The box head is three bottlenecks, which ResNet-18 does not have: 23 of their 50 tensors match one of its tensors in
    name and shape. Their stride is in the first 1x1 convolution, Detectron2's default, which KDEP's config for VOC
    leaves; ResNet-18's own blocks have no 1x1 convolution there. An extra norm follows. Images are BGR, minus the mean,
    with a standard deviation of 1.
    """
    return DetectConfig(checkpoint=checkpoint, out=out, neck="c4", legacy="std-1", stride_in_1x1=True, **VOC0712)


def legacy_kdep_r18_c4_coco(*, checkpoint: tuple[str, ...], out: Path) -> DetectConfig:
    """KDEP's Mask R-CNN of ResNet-18, C4, on COCO 2017; otherwise legacy-kdep-r18-c4.

    BGR images minus RGB means, over RGB standard deviations; the head's stride is in its 3x3 convolutions.
    """
    return DetectConfig(
        checkpoint=checkpoint, out=out, detector="mask-rcnn", neck="c4", legacy="rgb-mean", layout="coco2017"
    )


def legacy_kdep_mnv2_fpn(*, checkpoint: tuple[str, ...], out: Path) -> DetectConfig:
    """KDEP's Faster R-CNN of MobileNet-V2, FPN, on VOC 2007 and 2012, with its quirks: to compare with its numbers.

    Batch norms are frozen. Images are BGR, minus the mean, with a standard deviation of 1, which the frozen statistics
    do not fit.
    """
    return DetectConfig(checkpoint=checkpoint, out=out, norm="frozen", legacy="std-1", **VOC0712)


def legacy_kdep_mnv2_fpn_coco(*, checkpoint: tuple[str, ...], out: Path) -> DetectConfig:
    """KDEP's Faster R-CNN of MobileNet-V2, FPN, on COCO 2017; otherwise legacy-kdep-mnv2-fpn."""
    return DetectConfig(checkpoint=checkpoint, out=out, norm="frozen", legacy="std-1", layout="coco2017")


def smoke(
    *, checkpoint: tuple[str, ...] = ("random:torchvision/resnet18",), out: Path = Path("runs/smoke-det")
) -> DetectConfig:
    """A few steps of a small net on the toy scenes, with torchvision: takes seconds, shows only that it runs."""
    return DetectConfig(
        checkpoint=checkpoint,
        data=Path("data/toy/scenes"),
        out=out,
        backend="torchvision",
        fpn_dim=32,
        box_dim=64,
        rois=16,
        train_sizes=(96,),
        test_size=96,
        max_size=160,
        steps=4,
        batch_size=4,
        warmup=2,
        log_every=1,
        save_every=2,
    )


PRESETS: dict[str, Callable[..., DetectConfig]] = {
    "faster-rcnn-fpn": faster_rcnn_fpn,
    "faster-rcnn-fpn-voc": faster_rcnn_fpn_voc,
    "faster-rcnn-c4": faster_rcnn_c4,
    "faster-rcnn-c4-voc": faster_rcnn_c4_voc,
    "retinanet-fpn": retinanet_fpn,
    "mask-rcnn-fpn": mask_rcnn_fpn,
    "legacy-kdep-r18-c4": legacy_kdep_r18_c4,
    "legacy-kdep-r18-c4-coco": legacy_kdep_r18_c4_coco,
    "legacy-kdep-mnv2-fpn": legacy_kdep_mnv2_fpn,
    "legacy-kdep-mnv2-fpn-coco": legacy_kdep_mnv2_fpn_coco,
    "smoke": smoke,
}
