"""What a run does around each of Detectron2's steps."""

import time
from collections.abc import Mapping, Sequence

from detectron2.engine import HookBase
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn

from stillroom.backbone.run import seed_everything
from stillroom.det_transfer.schedule import factor


class Rate(ParamScheduler):
    """The multiple of the base learning rate, by the share of the steps that is done; see `factor`."""

    def __init__(self, steps: int, warmup: int, drops: Sequence[float]) -> None:
        self.steps, self.warmup, self.drops = steps, warmup, drops

    def __call__(self, where: float) -> float:
        return factor(round(where * self.steps), steps=self.steps, warmup=self.warmup, drops=self.drops)


class RefuseDiverged(HookBase):
    """Stop before weights that are not finite are saved, every `period` steps and at the end.

    Detectron2 itself looks at the losses, and only where a line is logged.
    """

    def __init__(self, net: nn.Module, period: int) -> None:
        self.net, self.period = net, period

    def after_step(self) -> None:
        """Look where a state is due."""
        step = self.trainer.iter + 1
        due = step % self.period == 0 or step == self.trainer.max_iter
        if due and not all(parameter.isfinite().all() for parameter in self.net.parameters()):
            raise FloatingPointError("weights are not finite")


class SeededSteps(HookBase):
    """Seed what the net draws, such as the boxes it learns from, by (seed, step, process) before each step.

    Attributes:
        seconds: of training, over all lives of the run.
    """

    def __init__(self, seed: int, rank: int) -> None:
        self.seed, self.rank = seed, rank
        self.seconds, self.marked = 0.0, time.perf_counter()

    def before_train(self) -> None:
        """The clock begins."""
        self.marked = time.perf_counter()

    def before_step(self) -> None:
        """As it says."""
        seed_everything(self.seed, self.trainer.iter, self.rank)

    def after_step(self) -> None:
        """The clock goes on."""
        now = time.perf_counter()
        self.seconds, self.marked = self.seconds + now - self.marked, now

    def state_dict(self) -> dict[str, float]:
        """For the next life."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Of an earlier life."""
        self.seconds = state["seconds"]


class ClipGradients(HookBase):
    """Shorten a gradient that is longer than `norm`, as the other backend does."""

    def __init__(self, net: nn.Module, norm: float) -> None:
        self.net, self.norm = net, norm

    def after_backward(self) -> None:
        """As it says."""
        nn.utils.clip_grad_norm_(self.net.parameters(), self.norm)
