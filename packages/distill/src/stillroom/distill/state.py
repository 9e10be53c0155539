"""The state of training: what changes from step to step, and is saved to resume from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from stillroom.distill.config import Monitor
from stillroom.distill.monitor import Best
from stillroom.distill.student import StudentModel
from stillroom.runs import Run
from stillroom.runs.parallel import MovingAverage, build_ema, load_optimizer
from stillroom.runs.run import DivergedError


class TrainState:
    """The students, their running averages, the optimiser, and the progress of the run.

    Args:
        students: on the run's device.
        optimizer: of all their parameters.
        ema: decay per step of the running averages; 0: none.
        scales_loss: whether the loss is scaled, so that gradients do not vanish in float16.

    Attributes:
        step: steps done.
        losses: means at the last log line.
        measured: the monitor's last measurements.
        untrained: its measurements before the first step; empty in a run that version 0.2 began.
        best: its best measurement.
        seconds: of training, up to the last reading of the clock, those before a resume included.
    """

    def __init__(
        self, students: list[StudentModel], optimizer: torch.optim.Optimizer, ema: float, *, scales_loss: bool = False
    ) -> None:
        self.students = students
        self.averages: list[MovingAverage | None] = [build_ema(student, ema) for student in students]
        self.optimizer = optimizer
        device = optimizer.param_groups[0]["params"][0].device
        self.scaler = torch.amp.GradScaler(device.type, enabled=scales_loss)
        self.step = 0
        self.losses = {"loss": float("nan")}
        self.measured: dict[str, float] = {}
        self.untrained: dict[str, float] = {}
        self.best = Best()
        self.seconds = 0.0

    def advance(self, loss: Tensor, lr: float) -> None:
        """Do one optimiser step at learning rate `lr` on the gradient of a loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)  # not where a gradient is infinite, which the scale is then lowered for
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        for average, student in zip(self.averages, self.students, strict=True):
            if average is not None:
                average.update_parameters(student)
        self.step += 1

    def is_out_of_patience(self, monitor: Monitor, last_step: int) -> bool:
        """Whether the run ends early, with its best students, because no measurement improved for long enough."""
        return self.step < last_step and self.best.should_stop(monitor.patience)

    def reason_to_stop(self, monitor: Monitor, last_step: int) -> str | None:
        """Why the run stops before its last step: out of patience, or out of time; None: it does not."""
        if self.is_out_of_patience(monitor, last_step):
            return f"no better measurement since step {self.best.step}"
        if self.step < last_step and monitor.hours is not None and self.seconds >= 3600 * monitor.hours:
            return f"--monitor.hours {monitor.hours:g} are over"
        return None

    def eval_models(self) -> list[StudentModel]:
        """The students that are measured and saved: the running averages, where there are any."""
        pairs = zip(self.students, self.averages, strict=True)
        return [student if mean is None else cast(StudentModel, mean.module) for student, mean in pairs]

    def state_dict(self) -> dict[str, Any]:
        """Everything, in types that `torch.load(weights_only=True)` reads."""
        return {
            "learners": [student.state_dict() for student in self.students],  # the key of every version since 0.2.1
            "averages": [mean.state_dict() for mean in self.averages if mean is not None],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "losses": self.losses,
            "measured": self.measured,
            "untrained": self.untrained,
            "best": asdict(self.best),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for student, saved in zip(self.students, state["learners"], strict=True):
            student.load_state_dict(saved)
        for mean, saved in zip([mean for mean in self.averages if mean is not None], state["averages"], strict=True):
            mean.load_state_dict(saved)
        load_optimizer(self.optimizer, state["optimizer"])
        if scaler := state.get("scaler"):  # new in 0.6.0, and empty where nothing is scaled
            self.scaler.load_state_dict(scaler)
        self.step, self.losses, self.measured = state["step"], state["losses"], state["measured"]
        self.untrained, self.seconds = state.get("untrained", {}), state.get("seconds", 0.0)  # new in 0.3.0
        self.best = Best(**state["best"])


@dataclass
class Meter:
    """Sums of each step's scalars. They stay on the device until they are read, so no step waits for them."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    def add(self, logged: Mapping[str, Tensor]) -> None:
        """Add one step's scalars."""
        for name, value in logged.items():
            self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach()
        self.steps += 1

    def read(self, run: Run) -> dict[str, float]:
        """Return the means over the steps since the last reading and over all processes, and start again at 0."""
        means = {name: float(run.sum(value.clone())) / self.steps / run.world_size for name, value in self.sums.items()}
        self.sums, self.steps = {}, 0
        return means


def refuse_infinite(losses: Mapping[str, float], step: int, kept: str) -> None:
    """Stop a run whose loss is NaN or infinite.

    Args:
        losses: means at a log line.
        step: its step.
        kept: what is left to resume from, see `RunDirectory.kept`.

    Raises:
        DivergedError: a loss is NaN or infinite.
    """
    for value in losses.values():
        if not torch.isfinite(torch.tensor(value)):
            raise DivergedError(f"the loss is {value} at step {step}: lower --lr; {kept}")
