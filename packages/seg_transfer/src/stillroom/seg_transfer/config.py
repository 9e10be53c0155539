"""What a segmentation run is. The words under each field are its `--help`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg  # names of flags

from stillroom.backbone.atomic import refuse_missing
from stillroom.backbone.configs import refuse_beside
from stillroom.backbone.flags import DeviceName
from stillroom.backbone.image_files import refuse_missing_folder
from stillroom.backbone.sweep import refuse_paths, split
from stillroom.seg_transfer.framework import find_framework

Layout = Literal["folder", "voc2012", "voc2012aug", "cityscapes", "ade20k"]
HeadName = Literal["psp", "fcn", "deeplabv3plus", "upernet", "linear"]
Amp = Literal["none", "bf16"]

BESIDE_OWN = ("like", "seeds", "device", "data_licence")
"""Fields that count beside a user's own config."""
SMALLEST = 0.1
"""Factor of an image's size."""


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """Train a backbone with a segmentation head; several checkpoints or seeds: a sweep."""

    checkpoint: Annotated[tuple[str, ...], arg(metavar="DIR|NAME [DIR|NAME ...]")]
    """First weights: checkpoint directory, a name with its pretrained weights, random:NAME, random or pretrained."""
    out: Path
    """Run directory to make; of a sweep one in it for each run, and those that are done are kept."""
    framework_config: Path | None = None
    """A config file of MMSegmentation's own, with the preset pspnet: its model, data and schedule count, and flags that
    would say otherwise are refused; only the backbone's weights, the seed and the run directory are replaced."""
    data: Path | None = None
    """Folder of the data set."""
    layout: Layout = "folder"
    """folder: DATA/images/{train,val}, DATA/labels/{train,val} (index masks, 255: ignored), DATA/classes.txt; or a
    published data set as MMSegmentation lays it out."""
    partial: bool = False
    """Take what is there of a published data set that is not whole; the protocol then says so."""
    like: str | None = None
    """Whose net and input `random` and `pretrained` take; None: those of the first other checkpoint."""
    head: HeadName = "psp"
    """Decoder, MMSegmentation's; linear: a 1x1 convolution behind batch norm."""
    channels: int = 512
    """Width of the decoder."""
    aux_weight: float = 0.4
    """Weight of the loss of a second decoder on the last level but one; 0: none."""
    main_weight: float = 1.0
    """Weight of the decoder's own loss."""
    output_stride: int = 8
    """Of the last map, pixels; below 32 the backbone is dilated. UPerNet takes 32."""
    atrous: Literal["exact", "second"] = "exact"
    """How strides are taken out. second: as in KDEP's PSPNet of ResNet-18."""
    frozen: bool = False
    """Keep the backbone's weights and statistics."""
    align_corners: bool = False
    """Of the decoder's bilinear resizing."""
    steps: int = 20_000
    """Steps of the optimiser."""
    batch_size: int = 16
    """Images per step, over all processes."""
    crop: int = 512
    """Side of training crops, and of the windows of `--evaluation slide`, pixels."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Training images are resized by a factor between these, relative to their own size."""
    rotate: float = 10.0
    """Largest rotation, degrees; one image in two is rotated. 0: none."""
    blur: float = 0.5
    """Share of training images that are blurred, [0, 1]."""
    lr: float = 0.01
    """Base learning rate of SGD, of the backbone; it falls to zero by (1 - step/steps)^0.9."""
    head_lr: float = 10.0
    """The decoder's learning rate over the backbone's."""
    momentum: float = 0.9
    """Share of the last step that the next one keeps, [0, 1)."""
    weight_decay: float = 1e-4
    """On every parameter."""
    amp: Amp = "none"
    """bf16: forward passes in bfloat16 autocast, on a GPU."""
    evaluation: Literal["whole", "slide"] = "whole"
    """Images at their own size at once, or windows of CROP pixels that overlap by a third and are averaged."""
    flip: bool = False
    """Evaluate the mirrored image too, and average."""
    scales: tuple[float, ...] = (1.0,)
    """Evaluate at these sizes, relative to the image's own, and average."""
    val_every: int = 0
    """Steps between two looks at the validation images; 0: at the end only. Nothing is chosen by them."""
    seeds: Annotated[tuple[int, ...], arg(aliases=("--seed",))] = (0,)
    """Of the random weights, of the order and the views."""
    device: DeviceName = "auto"
    """auto: a GPU if there is one."""
    workers: int = 1
    """Processes that decode images."""
    log_every: int = 50
    """Steps between two lines of the log."""
    save_every: int = 1000
    """Steps between two states to resume from."""
    data_licence: str | None = None
    """Licence of the images; a restricted one goes into the checkpoint's manifest."""

    @property
    def seed(self) -> int:
        """Of a single run."""
        (seed,) = self.seeds
        return seed

    @property
    def name(self) -> str:
        """Of a single run's first weights."""
        (name,) = self.checkpoint
        return name


def check(config: SegmentConfig, world_size: int, on_cpu: bool) -> None:
    """Refuse settings that cannot work before there is a run directory.

    Raises:
        ValueError: in one sentence.
    """
    for name in ("steps", "batch_size", "crop", "channels", "log_every", "save_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)}: it must be at least 1")
    for name in ("workers", "val_every", "rotate", "aux_weight", "main_weight", "lr", "head_lr", "weight_decay"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(
                f"--{name.replace('_', '-')} is {getattr(config, name)}: it must be at least 0, and finite"
            )
    if not 0 <= config.blur <= 1:
        raise ValueError(f"--blur is {config.blur}: it must lie in [0, 1]")
    if not 0 <= config.momentum < 1:
        raise ValueError(f"--momentum is {config.momentum}: it must lie in [0, 1)")
    low, high = config.scale
    if not SMALLEST <= low <= high <= 1 / SMALLEST:
        raise ValueError(f"--scale is {low} {high}: the smallest factor, then the largest, from {SMALLEST} to 10")
    if not config.scales or not all(SMALLEST <= scale <= 1 / SMALLEST for scale in config.scales):
        raise ValueError(f"--scales holds {list(config.scales)}: factors from {SMALLEST} to 10")
    if config.framework_config is not None:
        refuse_beside(config, "framework_config", BESIDE_OWN)
        return  # what follows is of our own recipe
    if config.batch_size % world_size:
        raise ValueError(f"--batch-size is {config.batch_size}: {world_size} processes cannot share it evenly")
    if config.batch_size == world_size and not config.frozen:
        raise ValueError("--batch-size leaves one image to a process: batch norm of pooled maps needs two")
    if config.amp != "none" and on_cpu:
        raise ValueError("--amp bf16 needs a GPU: MMEngine's mixed precision refuses the CPU")
    if config.frozen and config.aux_weight:
        raise ValueError("--frozen features take one decoder: say --aux-weight 0")


def check_source(config: SegmentConfig) -> None:
    """Refuse a run that does not say where its images are.

    Raises:
        ValueError: nothing was given, or it is not there.
    """
    if config.data is None:
        raise ValueError("give --data, or --framework-config with a data set of its own")
    refuse_missing_folder(config.data)


def preflight(config: SegmentConfig) -> None:
    """Refuse what needs no torch to be refused, before a command imports it: flags, and paths that are not there.

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
