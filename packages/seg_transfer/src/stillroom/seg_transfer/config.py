"""What a segmentation run is. The sentence under each field is its `--help`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stillroom.backbone.atomic import refuse_missing
from stillroom.backbone.checks import at_least, within
from stillroom.finetune.config import FineTuneConfig, check_shared, refuse_paths, split
from stillroom.images.files import refuse_missing_folder
from stillroom.runs.configs import refuse_ignored
from stillroom.seg_transfer.framework import find_framework

Layout = Literal["folder", "voc2012", "voc2012aug", "cityscapes", "ade20k"]
HeadName = Literal["psp", "fcn", "deeplabv3plus", "upernet", "linear"]

BESIDE_USER_CONFIG = ("like", "seeds", "device", "data_licence", "save_minutes", "if_exists")
"""Fields that count beside a user's config."""
SMALLEST = 0.1
"""Smallest factor of an image's size; the largest is its inverse."""


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(FineTuneConfig):
    """Train a backbone with a segmentation head; several checkpoints or seeds make a sweep."""

    framework_config: Path | None = None
    """A config file of MMSegmentation, with the preset pspnet. Its model, data and schedule are used as they are, and
    flags that would differ from it are refused; only the backbone's weights, the seed and the run directory change."""
    data: Path | None = None
    """Folder of the data set."""
    layout: Layout = "folder"
    """folder: DATA/images/{train,val}, DATA/labels/{train,val} (index masks, 255: ignored), DATA/classes.txt; or a
    published data set as MMSegmentation lays it out."""
    partial: bool = False
    """Accept an incomplete published data set; the protocol id then says so."""
    head: HeadName = "psp"
    """Decoder, MMSegmentation's; linear: batch norm and a 1x1 convolution."""
    channels: int = 512
    """Width of the decoder."""
    aux_weight: float = 0.4
    """Weight of the loss of an auxiliary decoder on the last level but one. 0: none."""
    main_weight: float = 1.0
    """Weight of the decoder's loss."""
    output_stride: int = 8
    """Stride of the last feature map: 8, 16 or 32 pixels. Below 32 the backbone is dilated; upernet needs 32."""
    atrous: Literal["exact", "second"] = "exact"
    """How strides become dilation. exact: features keep their values; second: as in KDEP's PSPNet of ResNet-18."""
    frozen: bool = False
    """Freeze the backbone: its weights and batch-norm statistics stay."""
    align_corners: bool = False
    """Align corners in the decoder's bilinear resizing."""
    steps: int = 20_000
    """Optimiser steps."""
    crop: int = 512
    """Side of training crops, and of the windows of `--evaluation slide`, pixels."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor by which training images are resized, relative to their size."""
    rotate: float = 10.0
    """Largest rotation, degrees; half of the training images are rotated. 0: none."""
    blur: float = 0.5
    """Fraction of training images that are blurred, [0, 1]."""
    lr: float = 0.01
    """Base learning rate of SGD, for the backbone; it falls to zero by (1 - step/steps)^0.9."""
    head_lr: float = 10.0
    """Multiplier on the decoder's learning rate."""
    momentum: float = 0.9
    """SGD momentum, [0, 1)."""
    weight_decay: float = 1e-4
    """Weight decay of every parameter."""
    evaluation: Literal["whole", "slide"] = "whole"
    """whole: images at their size. slide: windows of CROP pixels that overlap by a third, averaged."""
    flip: bool = False
    """Evaluate the mirrored image too, and average."""
    scales: tuple[float, ...] = (1.0,)
    """Evaluate at these sizes, relative to the image's, and average."""
    val_every: int = 0
    """Steps between two evaluations on the validation images. 0: only at the end. Nothing is selected by them."""


def check(config: SegmentConfig, world_size: int, on_cpu: bool) -> None:
    """Refuse settings that cannot work before there is a run directory.

    Args:
        config: of one run, or of a sweep.
        world_size: processes.
        on_cpu: whether they compute on the CPU.

    Raises:
        ValueError: in one sentence.
    """
    check_shared(config)
    at_least(config, 1, "steps", "crop", "channels")
    at_least(config, 0, "val_every", "rotate", "aux_weight", "main_weight", "lr", "head_lr", "weight_decay")
    within(config, 0, 1, "blur")
    within(config, 0, 1, "momentum", ends="[)")
    low, high = config.scale
    if not SMALLEST <= low <= high <= 1 / SMALLEST:
        raise ValueError(f"--scale is {low} {high}: the smallest factor, then the largest, from {SMALLEST} to 10")
    if not config.scales or not all(SMALLEST <= scale <= 1 / SMALLEST for scale in config.scales):
        raise ValueError(f"--scales holds {list(config.scales)}: factors from {SMALLEST} to 10")
    if config.framework_config is not None:
        refuse_ignored(config, "framework_config", BESIDE_USER_CONFIG)
        return  # the other checks are for our recipe
    if config.batch_size % world_size:
        raise ValueError(f"--batch-size is {config.batch_size}: {world_size} processes cannot share it evenly")
    if config.batch_size == world_size and not config.frozen:
        raise ValueError("--batch-size leaves one image to a process: batch norm of pooled maps needs two")
    if config.amp != "none" and on_cpu:
        raise ValueError("--amp bf16 needs a GPU: MMEngine's mixed precision refuses the CPU")
    if config.frozen and config.aux_weight:
        raise ValueError("--frozen features take one decoder: pass --aux-weight 0")


def check_source(config: SegmentConfig) -> None:
    """Refuse a run whose images are not named or do not exist.

    Raises:
        ValueError: no `data`, or no such folder.
    """
    if config.data is None:
        raise ValueError("pass --data, or --framework-config with a data set of its own")
    refuse_missing_folder(config.data)


def preflight(config: SegmentConfig) -> None:
    """Refuse bad flags and missing paths before a command imports torch.

    Raises:
        ValueError: in the sentence that the run would end with.
    """
    find_framework()
    check(config, world_size=1, on_cpu=config.device == "cpu")
    refuse_paths(config, alone=split(config) == [config])
    if config.framework_config is None:
        check_source(config)
    else:
        refuse_missing(config.framework_config)
