"""What a detection run is. The words under each field are its `--help`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stillroom.backbone.atomic import refuse_missing
from stillroom.backbone.checks import at_least
from stillroom.backbone.configs import refuse_beside
from stillroom.backbone.finetune.config import FineTuneConfig, check_shared, refuse_paths, split
from stillroom.backbone.image_files import existing_folder

BackendName = Literal["detectron2", "torchvision"]
DetectorName = Literal["faster-rcnn", "mask-rcnn", "retinanet"]
Neck = Literal["fpn", "c4"]
Norm = Literal["bn", "frozen"]
FpnNorm = Literal["none", "gn"]
Layout = Literal["coco", "coco2017", "voc", "voc0712"]
OnBadBox = Literal["refuse", "skip"]
Legacy = Literal["none", "rgb-mean", "std-1"]


@dataclass(frozen=True, kw_only=True)
class DetectConfig(FineTuneConfig):
    """Train a backbone with a detector; several checkpoints or seeds: a sweep."""

    backend: BackendName = "detectron2"
    """Whose detector and loop. Detectron2 is installed as its own documentation says; torchvision is always there."""
    framework_config: Path | None = None
    """A LazyConfig of Detectron2's own (.py, or .yaml as LazyConfig.save writes it), with the preset faster-rcnn-fpn:
    its model, data and schedule count, and flags that would say otherwise are refused; only the backbone's weights, the
    seed, the device and the run directory are replaced."""
    data: Path | None = None
    """Folder of the data set."""
    layout: Layout = "coco"
    """coco: DATA/annotations/{train,val}.json, DATA/images/{train,val}/; voc: DATA/{JPEGImages,Annotations,
    ImageSets/Main}; or a published data set in its official layout: coco2017, voc0712 (DATA/VOC2007, DATA/VOC2012)."""
    splits: tuple[str, str] = ("train", "val")
    """Of layout coco and voc: the names of what is learned from and of what is measured on."""
    train: tuple[Path, Path] | None = None
    """COCO-format JSON and folder of its images to learn from, wherever they are, in place of DATA's."""
    val: tuple[Path, Path] | None = None
    """COCO-format JSON and folder of its images to measure on."""
    partial: bool = False
    """Take what is there of a published data set that is not whole; the protocol then says so."""
    on_bad_box: OnBadBox = "refuse"
    """What a box without area or outside of its image does: stop with its name, or be left out, named and counted."""
    keep_empty: bool = False
    """Learn from images without boxes too."""
    detector: DetectorName = "faster-rcnn"
    """mask-rcnn needs a polygon or an RLE mask with every box."""
    neck: Neck = "fpn"
    """fpn: a feature pyramid; c4: boxes are cut out of the stride-16 map, the net's last stage is their head."""
    norm: Norm = "bn"
    """Of the backbone. bn: batch norm that trains (over all GPUs); frozen: statistics and affine as they came."""
    frozen: bool = False
    """Keep all weights and statistics of the backbone: what its features are good for as they are."""
    legacy: Legacy = "none"
    """What KDEP's code did, under c4 with a head of three bottlenecks and one more norm. rgb-mean: mean and std in the
    order of RGB on BGR images; std-1: mean of BGR, std 1."""
    fpn_dim: int = 256
    """Channels of the pyramid."""
    fpn_norm: FpnNorm = "none"
    """gn: group norm of 32 groups behind each of its convolutions; so the size of the features does not matter."""
    box_dim: int = 1024
    """Width of the two layers that judge a box."""
    anchor_scale: float = 8.0
    """Side of a level's anchors over its stride; c4: the smallest is 2 times the stride, the largest 32 times."""
    rois: int = 512
    """Boxes per image that the second stage learns from."""
    train_sizes: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    """Short side of training images, pixels; one is drawn for each."""
    test_size: int = 800
    """Short side of images that are measured on, pixels."""
    max_size: int = 1333
    """Long side at most, pixels."""
    steps: int = 90_000
    """Steps of the optimiser."""
    lr: float = 0.02
    """Learning rate of SGD with momentum 0.9."""
    drops: tuple[float, ...] = (2 / 3, 8 / 9)
    """Shares of the steps after which the rate falls to a tenth."""
    warmup: int = 1000
    """Steps in which the rate rises from 0.001 of itself."""
    weight_decay: float = 1e-4
    """On every parameter but those of norms."""
    clip: float = 0.0
    """Largest norm of the gradient; 0: any."""
    log_every: int = 20
    """Steps between two log lines."""


BESIDE_OWN = ("backend", "like", "seeds", "device", "workers", "data_licence")
"""Fields that count beside a user's own config; `workers` where images are measured on."""


def check(config: DetectConfig, world_size: int, on_cpu: bool) -> None:
    """Refuse settings that cannot work before there is a run directory.

    Raises:
        ValueError: in one sentence.
    """
    check_shared(config)
    at_least(config, 1, "steps", "fpn_dim", "box_dim", "rois", "test_size", "max_size")
    at_least(config, 0, "warmup", "lr", "weight_decay", "clip")
    if not 0 < config.anchor_scale < math.inf:
        raise ValueError(f"--anchor-scale is {config.anchor_scale}: it must be above 0")
    if not config.train_sizes or min(config.train_sizes) < 1:
        raise ValueError(f"--train-sizes holds {list(config.train_sizes)}: sides of 1 pixel or more")
    if list(config.drops) != sorted(config.drops) or not all(0 < drop < 1 for drop in config.drops):
        raise ValueError(f"--drops holds {list(config.drops)}: rising shares of the steps, between 0 and 1")
    if config.framework_config is None and config.batch_size % world_size:
        raise ValueError(f"--batch-size is {config.batch_size}: {world_size} processes cannot share it evenly")
    if config.detector == "retinanet" and config.neck == "c4":
        raise ValueError("retinanet has no second stage for --neck c4: say --neck fpn")
    if config.fpn_norm == "gn" and config.neck == "c4":
        raise ValueError("--fpn-norm is of a pyramid, --neck c4 has none: leave it out")
    if config.fpn_norm == "gn" and config.fpn_dim % 32:
        raise ValueError(f"--fpn-dim is {config.fpn_dim}: --fpn-norm gn wants a multiple of 32")
    if config.frozen and config.neck == "c4":
        raise ValueError("--frozen keeps the whole backbone, whose last stage judges boxes under c4: say --neck fpn")
    if config.legacy != "none" and config.backend != "detectron2":
        raise ValueError("--legacy repeats what KDEP did in Detectron2: say --backend detectron2")
    if config.framework_config is not None and config.backend != "detectron2":
        raise ValueError("--framework-config is a config of Detectron2's: say --backend detectron2")
    if config.framework_config is not None:
        refuse_beside(config, "framework_config", BESIDE_OWN)
    if config.backend == "detectron2" and config.amp != "none" and on_cpu:
        raise ValueError("--amp bf16 needs a GPU under Detectron2: its mixed precision refuses the CPU")


def check_source(config: DetectConfig) -> None:
    """Refuse a run that does not say where its images are.

    Raises:
        ValueError: nothing was given, or it is not there.
    """
    if (config.train is None) != (config.val is None):
        raise ValueError("give --train and --val both, or --data")
    if config.train is None and config.data is None:
        raise ValueError("give --data, or --train and --val, or --framework-config")
    if config.train is None and config.data is not None:
        existing_folder(config.data)
    for annotations, _ in filter(None, (config.train, config.val)):
        refuse_missing(annotations)


def preflight(config: DetectConfig) -> None:
    """Refuse what needs no torch to be refused, before a command imports it: flags, and paths that are not there.

    Raises:
        ValueError: in the sentence that the run would end with.
    """
    if config.backend == "detectron2":
        from stillroom.det_transfer import with_detectron2  # noqa: F401, PLC0415  # it says what is not installed

    check(config, world_size=1, on_cpu=config.device == "cpu")
    refuse_paths(config, alone=split(config) == [config])
    if config.framework_config is None:
        check_source(config)
    else:
        refuse_missing(config.framework_config)
