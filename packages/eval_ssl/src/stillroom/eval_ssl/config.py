"""What a frozen evaluation is. The words under each field are its `--help`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg  # only to show what a checkpoint may be in --help

from stillroom.backbone.flags import DeviceName, OnBroken
from stillroom.backbone.schedule import Cosine, Schedule
from stillroom.backbone.spec import FeaturePoint

FileFormat = Literal["npy", "safetensors", "parquet"]
Mode = Literal["cached", "live"]
Embedding = Literal["pca", "umap"]
Vote = Literal["majority", "weighted"]
Metric = Literal["cosine", "l2"]
Backend = Literal["torch", "faiss"]

TEMPERATURE = 0.07
"""Of the weighted vote of the neighbours."""


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Whose features, of what images."""

    checkpoint: Annotated[tuple[str, ...], arg(metavar="DIR|NAME [DIR|NAME ...]")]
    """Checkpoint directory, a backbone name with its pretrained weights, or random:NAME; of several, one table."""
    train: Path
    """Image folder whose labels are known: TRAIN/<class>/<image>."""
    test: Path
    """Image folder to classify, with the same classes."""
    out: Path
    """Run directory to make; with several checkpoints one in it for each, and those that are done are kept."""
    limit: int | None = None
    """For a quick look: only so many images of each folder, drawn by the seed; it then stands in the protocol."""
    feature: FeaturePoint | None = None
    """Read the pooled feature before or after the last activation; None as the checkpoint says."""
    level: int | None = None
    """Instead of the pooled feature the spatial mean of this level's map, -1: the last; None: the pooled feature."""
    head: str | None = None
    """Evaluate the output of this head of the checkpoint; a student keeps `distill` if asked to. None: none."""
    size: int | None = None
    """Input side, pixels; None as the checkpoint says."""
    crop_fraction: float | None = None
    """Crop over resized side, (0, 1]; None as the checkpoint says."""
    batch_size: int = 64
    """Images per forward pass."""
    cache: bool = True
    """Keep the features in ~/.cache/stillroom (or $STILLROOM_CACHE) for the next evaluation, and look there first."""
    seed: int = 0
    """Of the weights of random:NAME, and of whatever is drawn."""
    device: DeviceName = "auto"
    """auto: a GPU if there is one."""
    workers: int = 1
    """Processes that decode images."""
    on_broken: OnBroken = "refuse"
    """An image that cannot be read stops the run, or is skipped, named and counted."""


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(FeatureConfig):
    """Features as files, for whatever else they are wanted for."""

    test: Path | None = None  # type: ignore[assignment]  # nothing is classified
    """A second image folder, with the same classes; None: TRAIN alone."""
    labels: bool = True
    """TRAIN and TEST have a folder for each class; without, every image below them is read, and none has a label."""
    format: FileFormat = "npy"
    """npy and safetensors come with a table of paths and labels; parquet (extra `parquet`) holds them itself."""


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(FeatureConfig):
    """A measurement on frozen features."""

    figures: bool = True
    """Also draw PNG files: where the classes are confused, and what the command adds."""


@dataclass(frozen=True, kw_only=True)
class KnnConfig(FrozenConfig):
    """Exact k-NN classification of frozen features."""

    test: Path | None = None  # type: ignore[assignment]  # here too there is something to do without
    """Image folder to classify, with the same classes; None: each image of TRAIN by all the others (leave-one-out)."""
    k: tuple[int, ...] | None = None
    """Numbers of neighbours, all in one pass; None: those of 1, 5, 10, 20, 100, 200 that TRAIN has images for."""
    vote: Vote = "majority"
    """Equal votes, or weights exp(similarity / temperature)."""
    temperature: float = TEMPERATURE
    """Of the weighted vote."""
    metric: Metric = "cosine"
    """What is near; l2: the Euclidean distance."""
    backend: Backend = "torch"
    """faiss needs the extra `faiss`; both are exact."""
    memory_gib: float = 1.0
    """Bound of the similarities that the torch backend holds at once, GiB."""
    retrieval: bool = False
    """Also the mean average precision of ranking all of TRAIN for each test image."""
    embedding: Embedding = "pca"
    """The plane of the figure of all test images; umap needs the extra `umap`."""


@dataclass(frozen=True, kw_only=True)
class LinearConfig(FrozenConfig):
    """A linear classifier of frozen features: a grid of settings at once, chosen on a held-out part of TRAIN."""

    name: str = "v1"
    """Of the recipe, for the protocol id."""
    mode: Mode = "cached"
    """Features of fixed centre crops, or live: of random crops and flips, made anew in each epoch, one setting only."""
    lrs: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """Learning rates of the grid."""
    weight_decays: tuple[float, ...] = (0.0, 1e-4, 1e-3)
    """Weight decays of the grid."""
    more_levels: tuple[int, ...] = ()
    """Levels whose spatial means are tried beside the feature, as more choices of the grid, -1: the last; or none."""
    unit: tuple[bool, ...] = (False,)
    """Whether features are brought to unit length before they are standardised; give both to try both."""
    held_out: float = 0.1
    """Share of each class of TRAIN that the choice is made on; the chosen point is then trained on all of TRAIN."""
    epochs: int = 40
    """Passes over the features."""
    probe_batch_size: int = 256
    """Features per step of the classifier."""
    schedule: Schedule = Cosine()  # noqa: RUF009  # frozen
    at_once: int | None = None
    """Points of the grid trained together, what memory allows; None: all."""


@dataclass(frozen=True, kw_only=True)
class LogregConfig(FrozenConfig):
    """Logistic regression by L-BFGS to convergence; its penalty is chosen on a held-out part of TRAIN."""

    penalties: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    """Factors l of l/2 |W|^2 beside the mean cross-entropy."""
    held_out: float = 0.1
    """Share of each class of TRAIN that the choice is made on; the classifier is then fitted on all of TRAIN."""
    tolerance: float = 1e-5
    """Converged where no entry of the gradient is larger."""
    iterations: int = 1000
    """At most, for each penalty; what has not converged by then is told."""


@dataclass(frozen=True, kw_only=True)
class FewShotConfig(FrozenConfig):
    """Logistic regression from a few images of each class, several draws of them."""

    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Images per class; smaller draws are part of the larger ones."""
    draws: int = 5
    """Draws, each by its own seed: `--seed` and the next ones."""
    inverse_penalty: float = 1.0
    """C of the summed cross-entropy, beside |W|^2 / 2."""
