"""Hooks around each step of Detectron2's trainer."""

import time
from collections.abc import Mapping, Sequence

from detectron2.engine import HookBase
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn

from stillroom.backbone.seeds import seed_everything
from stillroom.det_transfer.schedule import lr_multiplier


class LearningRateSchedule(ParamScheduler):
    """The multiple of the base learning rate, by the fraction of the steps that is done; see `lr_multiplier`."""

    def __init__(self, steps: int, warmup: int, drops: Sequence[float]) -> None:
        self.steps, self.warmup, self.drops = steps, warmup, drops

    def __call__(self, where: float) -> float:
        return lr_multiplier(round(where * self.steps), steps=self.steps, warmup=self.warmup, drops=self.drops)


class RefuseDiverged(HookBase):
    """Stop the run before weights that are NaN or infinite are saved, every `period` steps and at the end.

    Detectron2 itself checks the losses only, and only when it logs a line.
    """

    def __init__(self, net: nn.Module, period: int) -> None:
        self.net, self.period = net, period

    def after_step(self) -> None:
        """Check the weights at the steps that save a state."""
        step = self.trainer.iter + 1
        due = step % self.period == 0 or step == self.trainer.max_iter
        if due and not all(parameter.isfinite().all() for parameter in self.net.parameters()):
            raise FloatingPointError("weights are not finite")


class SeededSteps(HookBase):
    """Seed the random draws of each step, such as the sampled boxes, by (seed, step, process).

    Attributes:
        seconds: training time, from the first step on and across resumes.
    """

    def __init__(self, seed: int, rank: int) -> None:
        self.seed, self.rank = seed, rank
        self.seconds, self.last_time = 0.0, time.perf_counter()

    def before_train(self) -> None:
        """Start the clock."""
        self.last_time = time.perf_counter()

    def before_step(self) -> None:
        """Seed every random generator."""
        seed_everything(self.seed, self.trainer.iter, self.rank)

    def after_step(self) -> None:
        """Add the time since the last step."""
        now = time.perf_counter()
        self.seconds, self.last_time = self.seconds + now - self.last_time, now

    def state_dict(self) -> dict[str, float]:
        """Return the training time, which Detectron2 saves with the run's state."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the training time before the resume."""
        self.seconds = state["seconds"]


class ClipGradients(HookBase):
    """Clip the gradient to the norm `norm`, as the torchvision backend does."""

    def __init__(self, net: nn.Module, norm: float) -> None:
        self.net, self.norm = net, norm

    def after_backward(self) -> None:
        """Clip the gradient of this step."""
        nn.utils.clip_grad_norm_(self.net.parameters(), self.norm)
