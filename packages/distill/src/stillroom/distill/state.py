"""What a run carries from step to step and writes down to be resumed from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from stillroom.backbone import Run
from stillroom.distill.config import DistillConfig, Monitor
from stillroom.distill.monitor import Best
from stillroom.distill.student import Learner, build_average, build_optimizer


class TrainState:
    """The students in training, their running averages, the optimiser, and how far the run has come.

    Args:
        config: optimiser, decay of the averages.
        learners: on the run's device.

    Attributes:
        step: steps done.
        losses: the means of the last log line.
        measured: what the monitors last saw.
        untrained: what they saw before the first step; nothing in a run that an older version began.
        best: their best measurement.
        seconds: of training, over all lives of the run, at the last log line.
    """

    def __init__(self, config: DistillConfig, learners: list[Learner]) -> None:
        self.learners = learners
        self.averages: list[AveragedModel | None] = [build_average(learner, config.ema) for learner in learners]
        self.optimizer = build_optimizer(config, learners)
        self.step = 0
        self.losses = {"loss": float("nan")}
        self.measured: dict[str, float] = {}
        self.untrained: dict[str, float] = {}
        self.best = Best()
        self.seconds = 0.0

    def advance(self, total: Tensor, lr: float) -> None:
        """One step of the optimiser at this learning rate, down the gradient of a loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for average, learner in zip(self.averages, self.learners, strict=True):
            if average is not None:
                average.update_parameters(learner)
        self.step += 1

    def reason_to_stop(self, monitor: Monitor) -> str | None:
        """Why the run ends before its last step, or None: no better measurement for too long, or its hours are over."""
        if self.best.should_stop(monitor.patience):
            return f"no better measurement since step {self.best.step}"
        if monitor.hours is not None and self.seconds >= 3600 * monitor.hours:
            return f"--monitor.hours {monitor.hours:g} are over"
        return None

    def leaving(self) -> list[Learner]:
        """The students that are measured and written: the running averages, where there are any."""
        pairs = zip(self.learners, self.averages, strict=True)
        return [learner if mean is None else cast(Learner, mean.module) for learner, mean in pairs]

    def state_dict(self) -> dict[str, Any]:
        """All of it, in types that `torch.load(weights_only=True)` reads."""
        return {
            "learners": [learner.state_dict() for learner in self.learners],
            "averages": [mean.state_dict() for mean in self.averages if mean is not None],
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "losses": self.losses,
            "measured": self.measured,
            "untrained": self.untrained,
            "best": asdict(self.best),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put everything back where it was."""
        for learner, kept in zip(self.learners, state["learners"], strict=True):
            learner.load_state_dict(kept)
        for mean, kept in zip([mean for mean in self.averages if mean is not None], state["averages"], strict=True):
            mean.load_state_dict(kept)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.losses, self.measured = state["step"], state["losses"], state["measured"]
        self.untrained, self.seconds = state.get("untrained", {}), state.get("seconds", 0.0)  # new in 0.3.0
        self.best = Best(**state["best"])


@dataclass
class Meter:
    """Sums of what each step shows, which stay on the device until they are read: no step waits for a number."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    def add(self, shown: Mapping[str, Tensor]) -> None:
        """Take in one step's scalars."""
        for name, value in shown.items():
            self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach()
        self.steps += 1

    def read(self, run: Run) -> dict[str, float]:
        """The means over the steps since the last reading and over all processes."""
        means = {name: float(run.sum(value.clone())) / self.steps / run.world_size for name, value in self.sums.items()}
        self.sums, self.steps = {}, 0
        return means


def refuse_infinite(losses: Mapping[str, float], step: int) -> None:
    """Stop a run whose loss is no number any more.

    Raises:
        ValueError: it is not.
    """
    for value in losses.values():
        if not torch.isfinite(torch.tensor(value)):
            raise ValueError(f"the loss is {value} at step {step}: lower --lr; the last good state is kept")
