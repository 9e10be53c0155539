"""What a classification run is. The words under each field are its `--help`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg  # only to show what a checkpoint may be in --help

from stillroom.backbone.images import OnBroken
from stillroom.backbone.run import DeviceName
from stillroom.backbone.schedule import Cosine, Schedule


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """Train backbone and linear classifier together on an image folder."""

    checkpoint: Annotated[str, arg(metavar="DIR|NAME")]
    """First weights: checkpoint directory, a backbone name with its pretrained weights, or random:NAME."""
    train: Path
    """Image folder, TRAIN/<class>/<image>."""
    test: Path
    """Image folder with the same classes; it is touched once, after the last epoch."""
    out: Path
    """Run directory to make."""
    size: int | None = None
    """Input side, pixels; None as the checkpoint says."""
    crop_fraction: float | None = None
    """Crop over resized side in evaluation, (0, 1]; None as the checkpoint says."""
    min_scale: float = 0.08
    """Smallest training crop, fraction of the image's area. For small images, or few, take 0.35."""
    epochs: int = 150
    """Passes over the data."""
    batch_size: int = 64
    """Images per step, over all processes."""
    lr: float = 1e-3
    """Base learning rate of SGD."""
    momentum: float = 0.9
    """Share of the last step that the next one keeps, [0, 1)."""
    weight_decay: float = 5e-4
    """On every parameter."""
    schedule: Schedule = field(default_factory=Cosine)
    amp: Literal["none", "bf16"] = "none"
    """bf16: forward passes in bfloat16 autocast."""
    seed: int = 0
    """Of the random weights, the order and the views."""
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


UNIONS = (Schedule,)
"""The fields of several variants, for config.json."""
