"""The settings of a detection run. The docstring under each field is its `--help`."""

from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import Literal

from stillroom.backbone.atomic import refuse_missing
from stillroom.backbone.checks import above, at_least, within
from stillroom.finetune.config import FineTuneConfig, check_shared, refuse_paths, split
from stillroom.images.files import refuse_missing_folder
from stillroom.runs.configs import ABSENT, load_config, refuse_ignored

BackendName = Literal["detectron2", "torchvision"]
DetectorName = Literal["faster-rcnn", "mask-rcnn", "retinanet"]
Neck = Literal["fpn", "c4"]
Norm = Literal["bn", "frozen"]
FpnNorm = Literal["none", "gn"]
Layout = Literal["coco", "coco2017", "voc", "voc0712"]
OnBadBox = Literal["refuse", "skip"]
VocBase = Literal[0, 1]
Legacy = Literal["none", "rgb-mean", "std-1"]

INSTALLATION = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"


@dataclass(frozen=True, kw_only=True)
class DetectConfig(FineTuneConfig):
    """Fine-tune a backbone for object detection; several checkpoints or seeds make a sweep."""

    backend: BackendName = "detectron2"
    """Library of the detector and the training loop. Detectron2 is installed as its own documentation says; torchvision
    is always available."""
    framework_config: Path | None = None
    """A LazyConfig for Detectron2 (.py, or .yaml as LazyConfig.save writes it), to be run with the preset
    faster-rcnn-fpn. Its model, data and schedule apply, and flags that they would override are refused; only the
    backbone's weights, the seed, the device and the run directory are replaced."""
    data: Path | None = None
    """Folder of the data set, in the layout that --layout names."""
    layout: Layout = "coco"
    """coco: DATA/annotations/{train,val}.json and DATA/images/{train,val}/; voc: DATA/JPEGImages, DATA/Annotations and
    DATA/ImageSets/Main; or a published data set in its official layout: coco2017, voc0712 (DATA/VOC2007,
    DATA/VOC2012)."""
    splits: tuple[str, str] = ("train", "val")
    """Names of the training and the validation split, under layout coco or voc."""
    train: tuple[Path, Path] | None = None
    """COCO-format JSON and image folder of the training data, in place of DATA's."""
    val: tuple[Path, Path] | None = None
    """COCO-format JSON and image folder of the validation data, in place of DATA's."""
    partial: bool = False
    """Accept an incomplete copy of a published data set; the protocol id then says partial."""
    on_bad_box: OnBadBox = "refuse"
    """Boxes without area or outside of their image: refuse stops with their names, skip leaves them out and reports
    them."""
    voc_base: VocBase | None = None
    """Under layout voc, where the boxes count from. 1: the first pixel is 1, and xmax and ymax are the last pixels, as
    in VOC; 0: the edges themselves, from 0. None: 1, and files that contradict it are reported."""
    keep_empty: bool = False
    """Train on images without boxes too."""
    detector: DetectorName = "faster-rcnn"
    """Detector; mask-rcnn needs a polygon or RLE mask with every box."""
    neck: Neck = "fpn"
    """fpn: a feature pyramid; c4: boxes are cropped from the stride-16 map, and the net's last stage is their head."""
    norm: Norm = "bn"
    """Batch norms of the backbone. bn: they train, with statistics over all GPUs; frozen: statistics and affine weights
    stay as in the checkpoint."""
    frozen: bool = False
    """Freeze the whole backbone, weights and statistics: only the detector's layers train."""
    legacy: Legacy = "none"
    """Repeat KDEP's code: under c4 a head of three bottlenecks and one extra norm. rgb-mean: mean and std in RGB order
    on BGR images; std-1: BGR mean, std 1."""
    stride_in_1x1: bool = False
    """Place the stride of KDEP's C4 head in its first 1x1 convolution, as Detectron2's default and KDEP's runs on VOC
    do. Off: in the 3x3 convolution, as torchvision does and KDEP's runs on COCO."""
    fpn_dim: int = 256
    """Channels of the pyramid."""
    fpn_norm: FpnNorm = "none"
    """gn: group norm with 32 groups after each of the pyramid's convolutions, so that the magnitude of the features
    does not matter."""
    box_dim: int = 1024
    """Width of the box head's two hidden layers."""
    anchor_scale: float = 8.0
    """Side of a level's anchors over its stride; under c4 they are fixed at 2 to 32 times the stride."""
    rois: int = 512
    """Boxes per image sampled to train the second stage."""
    train_sizes: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    """Short side of training images, pixels; one size is drawn for each image."""
    test_size: int = 800
    """Short side of validation images, pixels."""
    max_size: int = 1333
    """Largest long side, pixels."""
    steps: int = 90_000
    """Optimiser steps."""
    order: Literal[1, 2] = field(default=2, metadata={ABSENT: 1})
    """Version of the order of the images in an epoch. 2: a keyed bijection, of which each step computes its part. 1: an
    array of all images, as in runs of versions before 0.4, which keep it when they are resumed."""
    lr: float = 0.02
    """Learning rate of SGD with momentum 0.9."""
    drops: tuple[float, ...] = (2 / 3, 8 / 9)
    """Fractions of the steps after which the learning rate falls to a tenth."""
    warmup: int = 1000
    """Warm-up steps, in which the learning rate rises linearly from 0.001 of its value."""
    weight_decay: float = 1e-4
    """Weight decay, on every parameter except those of norms."""
    clip: float = 0.0
    """Gradient clipping: largest norm of the gradient; 0: none."""
    log_every: int = 20
    """Steps between two lines of metrics.jsonl, or of Detectron2's metrics.json."""


BESIDE_FRAMEWORK_CONFIG = ("backend", "like", "seeds", "device", "workers", "data_licence", "if_exists")
"""Fields that apply beside a user's LazyConfig; `workers` to the evaluation only."""


def check(config: DetectConfig, world_size: int, on_cpu: bool) -> None:
    """Refuse settings that cannot work, before there is a run directory.

    Args:
        config: of a run.
        world_size: number of processes.
        on_cpu: whether the run computes on the CPU.

    Raises:
        ValueError: with the first setting that is refused.
    """
    check_shared(config)
    at_least(config, 1, "steps", "fpn_dim", "box_dim", "rois", "test_size", "max_size", "train_sizes")
    at_least(config, 0, "warmup", "lr", "weight_decay", "clip")
    above(config, 0, "anchor_scale")
    within(config, 0, 1, "drops", ends="()")
    if not config.train_sizes:
        raise ValueError("--train-sizes is empty: pass at least one size in pixels")
    if list(config.drops) != sorted(config.drops):
        raise ValueError(f"--drops holds {list(config.drops)}: the fractions must rise")
    if config.framework_config is None and config.batch_size % world_size:
        raise ValueError(f"--batch-size is {config.batch_size}: it must be a multiple of the {world_size} processes")
    if config.voc_base is not None and config.layout != "voc":
        raise ValueError(f"--voc-base is about XML files, --layout is {config.layout}: leave it out")
    if config.detector == "retinanet" and config.neck == "c4":
        raise ValueError("retinanet has no second stage for --neck c4: pass --neck fpn")
    if config.fpn_norm == "gn" and config.neck == "c4":
        raise ValueError("--fpn-norm needs a pyramid, --neck c4 has none: leave it out")
    if config.fpn_norm == "gn" and config.fpn_dim % 32:
        raise ValueError(f"--fpn-dim is {config.fpn_dim}: --fpn-norm gn needs a multiple of 32")
    if config.frozen and config.neck == "c4":
        raise ValueError("--frozen freezes the last stage too, which is the box head under c4: pass --neck fpn")
    if config.legacy != "none" and config.backend != "detectron2":
        raise ValueError("--legacy repeats what KDEP did in Detectron2: pass --backend detectron2")
    if config.stride_in_1x1 and (config.legacy == "none" or config.neck != "c4"):
        raise ValueError("--stride-in-1x1 is about the bottlenecks of KDEP's C4 head: pass --neck c4 and --legacy")
    if config.framework_config is not None and config.backend != "detectron2":
        raise ValueError("--framework-config takes a LazyConfig of Detectron2: pass --backend detectron2")
    if config.framework_config is not None:
        refuse_ignored(config, "framework_config", BESIDE_FRAMEWORK_CONFIG)
    if config.backend == "detectron2" and config.amp != "none" and on_cpu:
        raise ValueError("--amp bf16 needs a GPU under Detectron2: its mixed precision refuses the CPU")


def check_source(config: DetectConfig) -> None:
    """Refuse a run without a data source, or whose source does not exist.

    Raises:
        ValueError: flags that are missing, or a path that does not exist.
    """
    if (config.train is None) != (config.val is None):
        raise ValueError("pass both --train and --val, or --data")
    if config.train is None and config.data is None:
        raise ValueError("pass --data, or --train and --val, or --framework-config")
    if config.train is None and config.data is not None:
        refuse_missing_folder(config.data)
    for annotations, _ in filter(None, (config.train, config.val)):
        refuse_missing(annotations)


def refuse_missing_backend(name: BackendName) -> None:
    """Refuse Detectron2 where it is not installed; nothing is imported.

    Raises:
        ValueError: with where its installation is documented, and the alternative.
    """
    if name == "detectron2" and util.find_spec("detectron2") is None:
        raise ValueError(
            f"Detectron2 is not installed: install it as {INSTALLATION} says (with setuptools<81), "
            f"or pass --backend torchvision for torchvision's detectors"
        )


def refuse_untrusted(run_directory: Path, trust_run: bool) -> None:
    """Refuse to execute the program of a run that may be from elsewhere; every other run is read as plain data.

    Raises:
        ValueError: the run has a user's LazyConfig, and nobody said that it may be executed.
    """
    file = load_config(run_directory, DetectConfig).framework_config
    if file is not None and not trust_run:
        raise ValueError(
            f"{run_directory} was trained with --framework-config {file}, a program that this command executes: pass "
            f"--trust-run if you trust whoever made this run"
        )


def preflight(config: DetectConfig) -> None:
    """Check flags and paths, before a command imports torch.

    Raises:
        ValueError: with the sentence that the run itself would end with.
    """
    refuse_missing_backend(config.backend)
    check(config, world_size=1, on_cpu=config.device == "cpu")
    refuse_paths(config, alone=split(config) == [config])
    if config.framework_config is None:
        check_source(config)
    else:
        refuse_missing(config.framework_config)
