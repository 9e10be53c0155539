"""What a classification run is. The sentence under each field is its `--help`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg  # names of flags

from stillroom.backbone.checks import at_least, within
from stillroom.backbone.flags import OnBroken
from stillroom.finetune.config import NETS_AND_SEEDS, Axes, FineTuneConfig, check_shared, refuse_paths, split
from stillroom.images.files import refuse_missing_images
from stillroom.images.labels import USUAL, Columns
from stillroom.runs.configs import ABSENT
from stillroom.runs.schedule import Cosine, Schedule

TaskName = Literal["cifar10", "cifar100", "dtd", "caltech256", "cub"]
Selection = Literal["best", "last", "best-on-test"]


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(FineTuneConfig):
    """Train a backbone with a classifier on labelled images. Several checkpoints, tasks, rates or seeds: a sweep."""

    train: Path | None = None
    """Training images by class: a folder TRAIN/<class>/<image>, a list of such files, a table with labels, tar shards,
    a .zip file or a saved data set."""
    test: Path | None = None
    """Test images of the same classes. Only the selected weights are tested on it, once."""
    val: Path | None = None
    """Validation images of the same classes, to select weights by. None: a part of TRAIN is held out."""
    columns: Columns = USUAL
    tasks: tuple[TaskName, ...] = ()
    """Published data sets in DATA, in place of TRAIN and TEST."""
    data: Path | None = None
    """Folder that holds cifar-10-batches-bin, cifar-100-binary, dtd, 256_ObjectCategories or CUB_200_2011."""
    download: bool = False
    """Download CIFAR if it is missing."""
    partial: bool = False
    """Accept an incomplete data set, if every class has images; the protocol id then says so."""
    dtd_split: int = 1
    """Split of DTD, 1 to 10."""
    caltech_per_class: int = 60
    """Training images per class of Caltech-256, drawn by the seed; the others are test images."""
    caltech_first: bool = False
    """Train on the first files of each class of Caltech-256 instead of drawn ones."""
    fraction: float | None = None
    """Train on this fraction of each class of TRAIN, (0, 1], drawn by the seed. None: on all."""
    shots: int | None = None
    """Train on this many images of each class, drawn by the seed. None: on all."""
    held_out: float = 0.1
    """Fraction of each class that is held out of the training images to select weights by, [0, 1). 0: none."""
    choose: Selection = "best"
    """Weights to keep: best: of the epoch with the best top-1 on the held-out images. last: of the last epoch.
    best-on-test: of the epoch with the best top-1 on the test images, as KDEP's code does."""
    val_every: int = 1
    """Epochs between two validations on the held-out images, with the last epoch in any case. best-on-test counts as
    KDEP's code does, from the first epoch on: 1, 6, 11, ... at 5."""
    size: int | None = None
    """Input side, pixels. None: the checkpoint's."""
    crop_fraction: float | None = None
    """Side of the evaluation crop over that of the resized image, (0, 1]. None: the checkpoint's."""
    normalise: bool = True
    """Normalise images by the checkpoint's mean and std. Off: mean 0 and std 1, as KDEP's fine-tuning code does."""
    cifar100_statistics: bool = False
    """Normalise the images of the task cifar100, and of no other, by its own mean (.5071 .4867 .4408) and std
    (.2675 .2565 .2761), as KDEP's fine-tuning code does, whatever is set for the others."""
    min_scale: float = 0.08
    """Smallest training crop, fraction of the image's area. Try 0.35 where images are small, or few."""
    randaugment: int = 0
    """Magnitude of RandAugment's two operations, up to 30. 0: none."""
    mixup: float = 0.0
    """Alpha of mixup. 0: none. With CutMix too, each batch gets one of the two."""
    cutmix: float = 0.0
    """Alpha of CutMix. 0: none."""
    label_smoothing: float = 0.0
    """Probability spread evenly over all classes in each target, [0, 1)."""
    hidden: tuple[int, ...] = ()
    """Widths of hidden layers between feature and classifier, each followed by a ReLU."""
    freeze: int = 0
    """Levels of the backbone to freeze, the finest first: their weights and batch-norm statistics stay."""
    layer_decay: float = 1.0
    """Learning rate of each level over that of the next coarser one, (0, 1]. The classifier's is the base rate."""
    epochs: int = 150
    """Passes over the training images."""
    batch_size: int = 64
    """Images per step, over all processes."""
    order: Literal[1, 2] = field(default=2, metadata={ABSENT: 1})
    """Version of the order of the images in an epoch. 2: a keyed bijection, of which each step computes its part. 1: an
    array of all images, as in runs of versions before 0.6, which keep it when they are resumed."""
    accumulate: int = 1
    """Micro-batches per step (gradient accumulation)."""
    lrs: Annotated[tuple[float, ...], arg(aliases=("--lr",))] = (1e-3,)
    """Base learning rates of SGD. Of several, the one with the best top-1 on the held-out images is reported."""
    momentum: float = 0.9
    """SGD momentum, [0, 1)."""
    weight_decay: float = 5e-4
    """Weight decay of every parameter."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then tested and kept. 0: none."""
    schedule: Schedule = field(default_factory=Cosine)
    compile: bool = False
    """Compile the net with torch.compile: about a minute at the start, then faster steps."""
    on_broken: OnBroken = "refuse"
    """What to do with an image that cannot be read: stop the run, or skip, name and count it."""

    @property
    def as_stored(self) -> bool:
        """Whether images are read as they are stored, not turned as their EXIF tags say: as KDEP's released code does.

        Its mark, in the protocol id too, is that weights are selected by the test images.
        """
        return self.choose == "best-on-test"

    @property
    def lr(self) -> float:
        """The base learning rate of a single run."""
        (lr,) = self.lrs
        return lr


CIFAR100_INPUT = {
    "mean": (0.5071, 0.4867, 0.4408),
    "std": (0.2675, 0.2565, 0.2761),
    "value_range": (0.0, 1.0),
    "channel_order": "rgb",
}
"""CIFAR-100's mean and std in KDEP's fine-tuning code."""


def fixed_input(config: ClassifyConfig) -> dict[str, Any]:
    """The fields of the input that a single run states itself, whatever the checkpoint's are."""
    if config.cifar100_statistics and config.tasks == ("cifar100",):
        return CIFAR100_INPUT
    return {} if config.normalise else {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


AXES: Axes = {
    "tasks": str,
    "checkpoint": NETS_AND_SEEDS["checkpoint"],
    "lrs": "lr{:g}".format,
    "seeds": NETS_AND_SEEDS["seeds"],
}
"""What makes a sweep, in the order of the run directories' names."""

UNIONS = (Schedule,)
"""The fields of several variants, for config.json."""


def check(config: ClassifyConfig) -> None:
    """Refuse settings that cannot work before there is a run directory.

    Raises:
        ValueError: in one sentence.
    """
    check_shared(config)
    at_least(config, 1, "epochs", "accumulate", "val_every", "hidden")
    at_least(config, 0, "lrs", "weight_decay", "mixup", "cutmix")
    within(config, 0, 1, "min_scale", "layer_decay", ends="(]")
    within(config, 0, 1, "label_smoothing", "ema", "momentum", "held_out", ends="[)")
    within(config, 0, 30, "randaugment")
    if len(config.lrs) > 1 and not config.held_out and config.val is None and config.choose != "best-on-test":
        raise ValueError("several --lrs need images to select one by: pass --held-out above 0, or --val")


def check_sources(config: ClassifyConfig) -> None:
    """Refuse a run that names no images, or names them twice.

    Raises:
        ValueError: neither folders nor a task were passed, or both.
    """
    if not config.tasks and (config.train is None or config.test is None):
        raise ValueError("pass --train and --test, or --tasks and --data")
    if config.tasks and (config.train is not None or config.test is not None):
        raise ValueError(f"--tasks {config.tasks[0]} has images of its own: leave out --train and --test")
    if config.tasks and config.data is None:
        raise ValueError(f"--tasks {config.tasks[0]} needs --data: the folder of the published data sets")


def preflight(config: ClassifyConfig) -> None:
    """Refuse bad flags and missing paths before a command imports torch.

    Raises:
        ValueError: in the sentence that the run would end with.
    """
    check(config)
    refuse_paths(config, alone=split(config, AXES) == [config])
    check_sources(config)
    for folder in filter(None, (config.train, config.test, config.val)):
        refuse_missing_images(folder)
