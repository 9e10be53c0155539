"""What a classification run is. The words under each field are its `--help`."""

import math
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg  # names of flags

from stillroom.backbone.flags import DeviceName, OnBroken
from stillroom.backbone.image_files import refuse_missing_folder
from stillroom.backbone.names import KEYWORDS, first_net
from stillroom.backbone.schedule import Cosine, Schedule
from stillroom.backbone.sweep import directory_name, refuse_paths, refuse_twice

TaskName = Literal["cifar10", "cifar100", "dtd", "caltech256", "cub"]
Choose = Literal["best", "last", "best-on-test"]


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """Train a backbone with a classifier on labelled images; several of what ends in s, or checkpoints: a sweep."""

    checkpoint: Annotated[tuple[str, ...], arg(metavar="DIR|NAME [DIR|NAME ...]")]
    """First weights: checkpoint directory, a name with its pretrained weights, random:NAME, random or pretrained."""
    out: Path
    """Run directory to make; of a sweep one in it for each run, and those that are done are kept."""
    train: Path | None = None
    """Image folder, TRAIN/<class>/<image>."""
    test: Path | None = None
    """Image folder with the same classes; it is touched once, by the weights that were chosen."""
    val: Path | None = None
    """Image folder to choose by; None: a part of TRAIN is held out."""
    tasks: tuple[TaskName, ...] = ()
    """Instead of TRAIN and TEST these data sets, as their authors publish them, below DATA."""
    data: Path | None = None
    """Folder of cifar-10-batches-bin, cifar-100-binary, dtd, 256_ObjectCategories, CUB_200_2011."""
    download: bool = False
    """Fetch CIFAR where it is missing."""
    partial: bool = False
    """Take what is there of a data set that is not whole, if every class has images; the protocol then says so."""
    dtd_split: int = 1
    """Of DTD, 1 to 10."""
    caltech_per_class: int = 60
    """Images of each class of Caltech-256 to learn from, drawn by the seed; the others are tested on."""
    caltech_first: bool = False
    """Learn from the first files of each class of Caltech-256 instead of drawn ones."""
    fraction: float | None = None
    """Learn from this share of each class of TRAIN, (0, 1], drawn by the seed; None: from all."""
    shots: int | None = None
    """Learn from so many images of each class, drawn by the seed; None: from all."""
    held_out: float = 0.1
    """Share of each class, of what is learnt from, that is held out to choose by; 0: nothing is chosen."""
    choose: Choose = "best"
    """The weights of the epoch that is best on the held-out part, or the last; best-on-test: as KDEP's code does it."""
    val_every: int = 1
    """Epochs between two looks at the held-out part."""
    like: str | None = None
    """Whose net and input `random` and `pretrained` take; None: those of the first other checkpoint."""
    size: int | None = None
    """Input side, pixels; None as the checkpoint says."""
    crop_fraction: float | None = None
    """Crop over resized side in evaluation, (0, 1]; None as the checkpoint says."""
    normalise: bool = True
    """Feed the checkpoint's mean and std; without, mean 0 and std 1, as KDEP's fine-tuning code does it."""
    min_scale: float = 0.08
    """Smallest training crop, fraction of the image's area. For small images, or few, take 0.35."""
    randaugment: int = 0
    """Magnitude of two operations of RandAugment, up to 30; 0: none."""
    mixup: float = 0.0
    """Alpha of mixup; 0: none. With cutmix too, each batch takes one of the two."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0: none."""
    label_smoothing: float = 0.0
    """Share of the target that all classes divide, [0, 1)."""
    hidden: tuple[int, ...] = ()
    """Widths of layers between feature and classifier, each followed by a ReLU."""
    freeze: int = 0
    """Levels of the backbone, the finest first, that keep their weights and batch-norm statistics."""
    layer_decay: float = 1.0
    """The learning rate of each level over that of the next coarser one, (0, 1]; the classifier's is lr."""
    epochs: int = 150
    """Passes over the data."""
    batch_size: int = 64
    """Images per step, over all processes."""
    accumulate: int = 1
    """Parts that a step's images go through the net in."""
    lrs: Annotated[tuple[float, ...], arg(aliases=("--lr",))] = (1e-3,)
    """Base learning rates of SGD; the best on the held-out part is reported."""
    momentum: float = 0.9
    """Share of the last step that the next one keeps, [0, 1)."""
    weight_decay: float = 5e-4
    """On every parameter."""
    ema: float = 0.0
    """Decay of a running average of the weights, which is then what is measured and kept; 0: none."""
    schedule: Schedule = field(default_factory=Cosine)
    amp: Literal["none", "bf16"] = "none"
    """bf16: forward passes in bfloat16 autocast."""
    compile: bool = False
    """Compile the net by torch.compile: a minute first, then faster steps."""
    seeds: Annotated[tuple[int, ...], arg(aliases=("--seed",))] = (0,)
    """Of the random weights, of what is drawn, of the order and the views."""
    device: DeviceName = "auto"
    """auto: a GPU if there is one."""
    workers: int = 1
    """Processes that decode images."""
    log_every: int = 50
    """Steps between two lines of metrics.jsonl."""
    save_every: int = 200
    """Steps between two states to resume from."""
    on_broken: OnBroken = "refuse"
    """An image that cannot be read stops the run, or is skipped, named and counted."""
    data_licence: str | None = None
    """Licence of the images; a restricted one goes into the checkpoint's manifest."""

    @property
    def lr(self) -> float:
        """Of a single run."""
        (lr,) = self.lrs
        return lr

    @property
    def seed(self) -> int:
        """Of a single run."""
        (seed,) = self.seeds
        return seed


def check(config: ClassifyConfig) -> None:
    """Refuse settings that cannot work before there is a run directory.

    Raises:
        ValueError: in one sentence.
    """
    for name in ("epochs", "batch_size", "accumulate", "val_every", "log_every", "save_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)}: it must be at least 1")
    for name in ("min_scale", "layer_decay"):
        if not 0 < getattr(config, name) <= 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)}: it must lie in (0, 1]")
    for name in ("label_smoothing", "ema", "momentum", "held_out"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)}: it must lie in [0, 1)")
    if not 0 <= config.randaugment <= 30:
        raise ValueError(f"--randaugment is {config.randaugment}: magnitudes go from 1 to 30, 0 is none")
    for name, values in (("lrs", config.lrs), ("weight_decay", (config.weight_decay,)), ("seeds", config.seeds)):
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise ValueError(f"--{name.replace('_', '-')} holds {list(values)}: numbers from 0 were expected")
    if config.workers < 0:
        raise ValueError(f"--workers is {config.workers}: it must be at least 0")
    if config.hidden and min(config.hidden) < 1:
        raise ValueError(f"--hidden is {list(config.hidden)}: widths are at least 1")
    if not min(config.mixup, config.cutmix) >= 0:
        raise ValueError("--mixup and --cutmix are the alphas of a Beta distribution: they cannot be negative")


def split(config: ClassifyConfig) -> list[ClassifyConfig]:
    """The single runs: the config itself, or one for each combination, in directories of their own.

    Raises:
        ValueError: nothing to combine; several rates and nothing to choose by.
    """
    for name in ("checkpoint", "lrs", "seeds"):
        if not getattr(config, name):
            raise ValueError(f"--{name} is empty: give at least one")
    if len(config.lrs) > 1 and not config.held_out and config.val is None and config.choose != "best-on-test":
        raise ValueError("several --lrs need something to choose by: --held-out above 0, or --val")
    for name in ("checkpoint", "tasks", "lrs", "seeds"):
        refuse_twice(getattr(config, name), f"--{name}")
    axes = (config.tasks or (None,), config.checkpoint, config.lrs, config.seeds)
    if all(len(axis) == 1 for axis in axes):
        return [config]
    like = config.like or first_net(config.checkpoint)
    cells = []
    for task, checkpoint, lr, seed in product(*axes):
        parts = [task or "", directory_name(checkpoint), f"lr{lr:g}", f"seed{seed}"]
        cell = replace(
            config, tasks=(task,) if task else (), checkpoint=(checkpoint,), lrs=(lr,), seeds=(seed,),
            out=config.out / "-".join(filter(None, parts)), like=like if checkpoint in KEYWORDS else None,
        )  # fmt: skip
        cells.append(cell)
    return cells


def check_sources(config: ClassifyConfig) -> None:
    """Refuse a run that does not say where its images are, or says it twice.

    Raises:
        ValueError: neither folders nor a task were given, or both.
    """
    if not config.tasks and (config.train is None or config.test is None):
        raise ValueError("give --train and --test, or --tasks and --data")
    if config.tasks and (config.train is not None or config.test is not None):
        raise ValueError(f"--tasks {config.tasks[0]} comes with its own images: leave out --train and --test")
    if config.tasks and config.data is None:
        raise ValueError(f"--tasks {config.tasks[0]} needs --data: the folder of the published data sets")


def preflight(config: ClassifyConfig) -> None:
    """Refuse what needs no torch to be refused, before a command imports it: flags, and paths that are not there.

    Raises:
        ValueError: in the sentence that the run would end with.
    """
    check(config)
    refuse_paths(config, alone=split(config) == [config])
    check_sources(config)
    for folder in filter(None, (config.train, config.test, config.val)):
        refuse_missing_folder(folder)


UNIONS = (Schedule,)
"""The fields of several variants, for config.json."""
