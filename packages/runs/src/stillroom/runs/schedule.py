"""Learning-rate schedules as data: the factor on the base rate at each step."""

import math
from dataclasses import dataclass
from typing import Literal

from stillroom.backbone.checks import at_least


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from the base rate to zero over the run (SGDR without restarts, Loshchilov and Hutter 2017)."""

    warmup_epochs: float = 0.0
    """Epochs of linear warm-up before the cosine."""
    change_every: Literal["step", "epoch"] = "step"
    """How often the rate changes after the warm-up."""

    def __post_init__(self) -> None:
        at_least(self, 0, "warmup_epochs", prefix="schedule.")

    def factor(self, epoch: float, epochs: int) -> float:
        """The factor on the base learning rate at `epoch` (fractional, 0 to `epochs`)."""
        if epoch < self.warmup_epochs:
            return epoch / self.warmup_epochs
        epoch = math.floor(epoch) if self.change_every == "epoch" else epoch
        progress = max(epoch - self.warmup_epochs, 0.0) / max(epochs - self.warmup_epochs, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


@dataclass(frozen=True, kw_only=True)
class Step:
    """Multiply the rate by `gamma` every `every` epochs."""

    every: int = 30
    """Epochs between two drops."""
    gamma: float = 0.1
    """Factor of each drop."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up at the start."""

    def __post_init__(self) -> None:
        at_least(self, 1, "every", prefix="schedule.")
        at_least(self, 0, "warmup_epochs", "gamma", prefix="schedule.")

    def factor(self, epoch: float, epochs: int) -> float:
        """The factor on the base learning rate at `epoch` (fractional, 0 to `epochs`)."""
        warmup = min(epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        return warmup * self.gamma ** math.floor(epoch / self.every)


Schedule = Cosine | Step
