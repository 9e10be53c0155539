"""What a frozen evaluation is. The words under each field are its `--help`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg  # only to show what a checkpoint may be in --help

from stillroom.backbone.images import OnBroken
from stillroom.backbone.run import DeviceName
from stillroom.backbone.spec import FeaturePoint


@dataclass(frozen=True, kw_only=True)
class KnnConfig:
    """Exact k-NN classification with cosine similarity of frozen features."""

    checkpoint: Annotated[str, arg(metavar="DIR|NAME")]
    """Checkpoint directory, a backbone name with its pretrained weights, or random:NAME."""
    train: Path
    """Image folder whose images are the neighbours: TRAIN/<class>/<image>."""
    test: Path
    """Image folder to classify, with the same classes."""
    out: Path
    """Run directory to make."""
    k: tuple[int, ...] = (1, 5, 10, 20)
    """Numbers of neighbours."""
    feature: FeaturePoint | None = None
    """Read the pooled feature before or after the last activation; None as the checkpoint says."""
    head: str | None = None
    """Evaluate the output of this head of the checkpoint; a student keeps `distill` if asked to. None: none."""
    size: int | None = None
    """Input side, pixels; None as the checkpoint says."""
    crop_fraction: float | None = None
    """Crop over resized side, (0, 1]; None as the checkpoint says."""
    batch_size: int = 64
    """Images per forward pass."""
    seed: int = 0
    """Of the weights of random:NAME."""
    device: DeviceName = "auto"
    """auto: a GPU if there is one."""
    workers: int = 1
    """Processes that decode images."""
    on_broken: OnBroken = "refuse"
    """An image that cannot be read stops the run, or is skipped, named and counted."""
