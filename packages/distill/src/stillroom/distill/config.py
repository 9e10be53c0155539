"""What a distillation run is. The words under each field are its `--help`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg  # so that the net's name is `--teacher`, not `--teacher.name`; nothing else of tyro is here

from stillroom.backbone.images import OnBroken
from stillroom.backbone.run import DeviceName
from stillroom.backbone.schedule import Cosine, Schedule, Step
from stillroom.backbone.spec import FeaturePoint
from stillroom.distill.views import KdepView


@dataclass(frozen=True, kw_only=True)
class Svd:
    """SVD alone: the first components of the teacher's centred features."""

    dim: int | None = None
    """Components; None takes the student's width."""
    zero_fill: bool = False
    """Where the features have a lower rank, give zeros for the missing components instead of refusing."""


@dataclass(frozen=True, kw_only=True)
class SvdPts(Svd):
    """KDEP: SVD, then power temperature scaling sign(z) |z / T|^(1/n)."""

    temperature: float = 0.1
    """T."""
    exponent: float = 3.0
    """n."""


Alignment = SvdPts | Svd


@dataclass(frozen=True, kw_only=True)
class Net:
    """A net and how it is fed."""

    name: Annotated[str, arg(name="", metavar="NAME|DIR")]
    """Backbone name or checkpoint directory. A teacher's name means its pretrained weights, a student's name random
    ones; random:NAME is always random."""
    feature: FeaturePoint = "before"
    """Read the pooled feature before or after the last activation."""
    size: int | None = None
    """Input side, pixels; None as the net's specification says."""
    crop_fraction: float | None = None
    """Crop over resized side in evaluation, (0, 1]; None as the net's specification says."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """One run of KDEP."""

    teacher: Net
    student: Net
    data: Path
    """Folder of images, labels not needed; subfolders are read too."""
    out: Path
    """Run directory to make."""
    view: KdepView = field(default_factory=KdepView)
    alignment: Alignment = field(default_factory=SvdPts)
    alignment_file: Path | None = None
    """Use this alignment (from fit-alignment or import-alignment) instead of fitting one on the data."""
    epochs: int = 90
    """Passes over the data."""
    batch_size: int = 512
    """Images per step, over all processes."""
    lr: float = 0.3
    """Base learning rate of SGD."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    """On every parameter."""
    schedule: Schedule = field(default_factory=Step)
    loss_weight: float = 3.0
    """Times the mean squared error to the target, whose mean square is 1."""
    amp: Literal["none", "bf16"] = "none"
    """bf16: forward passes in bfloat16 autocast."""
    compile: bool = False
    """torch.compile both nets."""
    sync_batch_norm: bool = False
    """Share batch statistics over processes (GPUs only)."""
    seed: int = 0
    device: DeviceName = "auto"
    workers: int = 1
    """Processes that decode images."""
    log_every: int = 50
    """Steps between two lines of metrics.jsonl."""
    save_every: int = 200
    """Steps between two states to resume from."""
    on_broken: OnBroken = "refuse"
    """An image that cannot be read stops the run, or is skipped, named and counted."""
    data_licence: str | None = None
    """Licence of the images; a restricted one goes into the student's manifest."""


UNIONS = (Alignment, Schedule)
"""The fields of several variants, for config.json."""

__all__ = ["UNIONS", "Alignment", "Cosine", "DistillConfig", "KdepView", "Net", "Step", "Svd", "SvdPts"]
