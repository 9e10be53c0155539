"""What all protocols share: flags, checks of flags and arguments, and the methods of a protocol. Imports no torch."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import arg  # only to show in --help what a checkpoint may be

from stillroom import (  # lazy packages: the quoted types import torch, and only where they are checked
    backbone,
    eval_ssl,
)
from stillroom.backbone.atomic import refuse_unwritable
from stillroom.backbone.checks import at_least
from stillroom.backbone.flags import DeviceName, ExecutorName, IfExists, OnBroken, Workers
from stillroom.backbone.names import refuse_missing_checkpoint
from stillroom.backbone.spec import FeaturePoint
from stillroom.images import Source, read_labelled
from stillroom.images.files import refuse_missing_images, shuffled_by_class
from stillroom.images.labels import USUAL, Columns
from stillroom.runs.executor import check_executor
from stillroom.runs.results import RESULTS, Results
from stillroom.runs.sweep import refuse_twice

Vote = Literal["majority", "weighted"]
Metric = Literal["cosine", "l2"]
Backend = Literal["torch", "faiss"]
Embedding = Literal["pca", "umap"]
Mode = Literal["cached", "live"]
FileFormat = Literal["npy", "safetensors", "parquet"]

TEMPERATURE = 0.07
"""Temperature of weighted k-NN votes, as in Wu et al., CVPR 2018."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a protocol makes of the features of one checkpoint.

    Args:
        protocol: versioned id that names everything that changes the numbers.
        metrics: name -> fraction from 0 to 1.
        extra: what else results.json holds.
        write_files: writes further files into the run directory.
        draw_figures: draws PNG files into a folder.
        clean_up: deletes intermediate state, once the results are on disk.
    """

    protocol: str
    metrics: dict[str, float]
    extra: dict[str, Any] = field(default_factory=dict)
    write_files: Callable[[Path], None] | None = None
    draw_figures: Callable[[Path], None] | None = None
    clean_up: Callable[[], None] | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(ABC):
    """One protocol, on the frozen features of one or several checkpoints.

    Each file of `protocols/` holds one subclass: flags, checks, evaluation and report, in this order.
    """

    task: ClassVar[str]
    """`task` of results.json: knn, linear, logreg, few-shot or features."""
    as_released: ClassVar[bool] = False
    """Whether to repeat what released code measured; see `stillroom.eval_ssl.protocols.legacy_simreg`."""

    checkpoint: Annotated[tuple[str, ...], arg(metavar="DIR|NAME [DIR|NAME ...]")]
    """Checkpoint directory, a backbone name with its pretrained weights, or random:NAME; several give one table."""
    train: Path
    """Labelled images to learn from: a folder TRAIN/<class>/<image>, a list of such files, a table with labels, tar
    shards, a .zip file or a saved data set."""
    test: Path
    """Images to classify, of the same classes."""
    out: Path
    """Run directory to create; with several checkpoints it holds one per checkpoint, and finished ones are kept."""
    columns: Columns = USUAL
    limit: int | None = None
    """Use only this many images per folder, drawn by the seed, for a quick result; it is named in the protocol id."""
    feature: FeaturePoint | None = None
    """Read the pooled feature before or after the last activation; None as the checkpoint says."""
    level: int | None = None
    """Evaluate the spatial mean of this level's map instead of the pooled feature, -1: the last; None: the feature."""
    head: str | None = None
    """Evaluate the output of this head of the checkpoint; a student may keep one named `distill`. None: no head."""
    head_layer: int | None = None
    """Evaluate the output of this layer of the head, from 1; a layer ends before the next linear one, so its batch norm
    and ReLU count. None: the whole head."""
    size: int | None = None
    """Input side, pixels; None as the checkpoint says."""
    crop_fraction: float | None = None
    """Crop over resized side, (0, 1]; None as the checkpoint says."""
    batch_size: int = 64
    """Images per forward pass."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Number format of the forward passes. none: float32. The others are named in the protocol id."""
    cache: bool = True
    """Cache features in ~/.cache/stillroom (or $STILLROOM_CACHE) and reuse those of earlier evaluations."""
    seed: int = 0
    """Seed of the weights of random:NAME and of every random draw."""
    device: DeviceName = "auto"
    """auto: a CUDA GPU, else an Apple GPU, else the CPU."""
    workers: Workers = "auto"
    """Processes that decode images; 0: the main process does. auto: one for each core, on a machine without a GPU one
    less."""
    on_broken: OnBroken = "refuse"
    """Stop at an image that cannot be read, or skip it: it is then named and counted."""
    if_exists: IfExists = "refuse"
    """refuse: OUT must not exist, unless it is of several checkpoints. resume: a finished evaluation is kept if its
    weights, images and settings are the same; start everything that nobody watches this way."""
    executor: ExecutorName = "local"
    """local: several checkpoints one after the other, here. submitit: each as a job, under SLURM where there is one."""
    executor_options: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE [NAME=VALUE ...]")] = ()
    """Parameters of the jobs, submitit's: timeout_min=600 slurm_partition=gpu gpus_per_node=1 cpus_per_task=8."""

    def preflight(self) -> None:
        """Refuse what can be refused before torch is imported: bad flags and missing paths.

        Raises:
            ValueError: in one sentence.
        """
        self.check()
        for images in filter(None, (self.train, self.test)):
            refuse_missing_images(images)
        for name in self.checkpoint:
            refuse_missing_checkpoint(name)

    def check(self) -> None:
        """Refuse flags that cannot work, whatever the images are.

        Raises:
            ValueError: in one sentence.
        """
        if not self.checkpoint:
            raise ValueError("--checkpoint is empty: pass at least one")
        refuse_twice(self.checkpoint, "--checkpoint")
        self.refuse_taken()
        at_least(self, 0, "seed", "workers")
        at_least(self, 1, "batch_size")
        check_executor(self.executor, self.executor_options)
        if self.head_layer is not None:
            at_least(self, 1, "head_layer")
            if self.head is None:
                raise ValueError(f"--head-layer {self.head_layer} is a layer of a head: pass --head, such as distill")
        if self.limit is not None:
            at_least(self, 1, "limit")

    def refuse_taken(self) -> None:
        """Refuse a directory that exists, unless a finished evaluation in it may be kept, or that cannot be created.

        Raises:
            ValueError: in one sentence.
        """
        several, finished = len(self.checkpoint) > 1, (self.out / RESULTS).exists()
        kept = finished and not several and self.if_exists == "resume"
        if self.out.is_file() or (finished and not kept) or (self.out.exists() and not several and not kept):
            resumes = self.if_exists == "resume" and not several
            reason = f"exists and is not an evaluation (it has no {RESULTS})" if resumes else "exists"
            advice = ", or pass --if-exists resume to keep it" if finished and not several else ""
            raise ValueError(f"{self.out} {reason}: choose another --out{advice}")
        refuse_unwritable(self.out)

    def read_images(self) -> tuple[Source, Source | None]:
        """List the images of TRAIN and TEST, or as many of them as `--limit` allows.

        Raises:
            ValueError: see `read_labelled`; a single class, which leaves nothing to predict.
        """
        train = read_labelled(self.train, columns=self.columns)
        if len(train.classes) < 2:
            raise ValueError(f"{self.train} holds one class, {train.classes[0]}: a classifier needs at least two")
        test = None if self.test is None else read_labelled(self.test, train.classes, self.columns)
        return self.limited(train), None if test is None else self.limited(test)

    def limited(self, files: Source) -> Source:
        """As many of the images as `--limit` allows, balanced over the classes."""
        if self.limit is None:
            return files
        by_class = shuffled_by_class(files.labels or [0] * len(files), self.seed).values()
        alternating = [index for turn in zip_longest(*by_class) for index in turn if index is not None]
        return files.subset(sorted(alternating[: self.limit]))

    @abstractmethod
    def check_images(self, train: Source, test: Source | None) -> None:
        """Refuse flags that these images do not allow, before the hours of extraction.

        Raises:
            ValueError: in one sentence.
        """

    @property
    def levels(self) -> tuple[int | None, ...]:
        """The feature sources to extract, side by side; see `Extractor`."""
        return (self.level,)

    @abstractmethod
    def evaluate(self, features: "eval_ssl.FeatureSets", run: "backbone.Run") -> Outcome:
        """Apply the protocol to the features of one checkpoint."""

    @classmethod
    @abstractmethod
    def report(cls, directory: Path, results: Results) -> str:
        """What is printed of a run: a table, and last its directory with the headline metric."""

    @classmethod
    def table_metrics(cls, metrics: Mapping[str, float]) -> dict[str, str]:
        """The metrics that a table of several checkpoints shows, each with its column header; none for files alone."""
        return {}

    @classmethod
    def headline(cls, metrics: Mapping[str, float]) -> str:
        """The main metric, one of those that `table_metrics` names."""
        return next(iter(cls.table_metrics(metrics)))

    @classmethod  # noqa: B027
    def draw_comparison(cls, folder: Path, metrics: Mapping[str, dict[str, float]]) -> None:
        """Draw figures of several checkpoints, by name, into a folder; most protocols have none."""


@dataclass(frozen=True, kw_only=True)
class MeasurementConfig(EvaluationConfig):
    """A protocol that gives numbers, and figures of them."""

    figures: bool = True
    """Also draw PNG files: a confusion matrix and others, by protocol."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting of a linear probe's grid: how to learn, and from what.

    Args:
        lr: learning rate of SGD.
        weight_decay: of SGD.
        feature_source: which of the features' sources; see `linear_probe`.
        unit: whether features are L2-normalised before they are standardised.
    """

    lr: float
    weight_decay: float
    feature_source: str = "pooled"
    unit: bool = False


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that gives no weights.

    Raises:
        ValueError: not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"--temperature is {temperature}: it must be above 0")


def check_grid(points: Sequence[Point]) -> None:
    """Refuse a grid that cannot be trained.

    Raises:
        ValueError: an empty grid, or a setting that is negative or NaN.
    """
    if not points:
        raise ValueError("the grid is empty: pass at least one --lrs and one --weight-decays")
    if not all(value >= 0 for point in points for value in (point.lr, point.weight_decay)):
        raise ValueError("a learning rate or a weight decay of the grid is negative or NaN")


def check_held_out(fraction: float) -> None:
    """Refuse a held-out fraction that leaves one part empty.

    Raises:
        ValueError: outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"--held-out is {fraction}: it must lie in (0, 1)")


def check_penalties(penalties: Sequence[float]) -> None:
    """Refuse penalties that define no problem.

    Raises:
        ValueError: none at all, or one that is not above 0: separable classes then have no solution.
    """
    if not penalties:
        raise ValueError("--penalties is empty: pass at least one")
    if bad := [penalty for penalty in penalties if not (penalty > 0 and math.isfinite(penalty))]:
        raise ValueError(f"--penalties holds {bad[0]:g}: they must be above 0, and finite")
