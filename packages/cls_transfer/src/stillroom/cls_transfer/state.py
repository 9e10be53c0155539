"""The training state: what a run carries from step to step, and saves to resume from."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel as DDP

from stillroom.backbone import weights_sha256
from stillroom.cls_transfer.config import ClassifyConfig
from stillroom.cls_transfer.model import Classifier, build_groups
from stillroom.runs import Run
from stillroom.runs.parallel import build_ema, load_optimizer, wrap_ddp


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best validation: its epoch, and its top-1 as a fraction; -1 before the first."""

    epoch: int = 0
    top1: float = -1.0


class TrainState:
    """The classifier, its moving average, the optimiser, and the progress of the run.

    Args:
        config: of a single run.
        model: on the run's device, with its initial weights.
        run: this process.

    Attributes:
        initial: `weights_sha256` of the backbone that the run began with.
        step: finished steps.
        seconds: of training and validation before the last resume.
        broken: why training images could not be read, before the last resume.
        best: the best validation so far.
        best_weights: the weights that it measured, on the CPU; None: none yet, or the last weights are kept.
        val_broken: why held-out images could not be read.
    """

    def __init__(self, config: ClassifyConfig, model: Classifier, run: Run) -> None:
        self.config, self.model = config, model
        self.optimizer = torch.optim.SGD(
            build_groups(model, config.layer_decay),
            config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=run.device.type == "cuda" or None,
        )
        self.average = build_ema(model, config.ema)
        self.initial = weights_sha256(model.backbone.net)
        self.step, self.best = 0, Best()
        self.seconds = 0.0
        self.broken: set[str] = set()
        self.best_weights: dict[str, Tensor] | None = None
        self.val_broken: list[str] = []
        compiled: Any = torch.compile(model) if config.compile else model
        self._forward = wrap_ddp(compiled, run)
        self._autocast = torch.autocast(run.device.type, torch.bfloat16, enabled=config.amp == "bf16")

    def advance(self, images: Float[Tensor, "b 3 h w"], targets: Tensor, epoch: float) -> Tensor:
        """Take one optimiser step on the mean cross-entropy of a batch.

        Args:
            images: of this process.
            targets: labels (b,) or class probabilities (b, k).
            epoch: fractional, for the learning rate.

        Returns:
            The loss, still on the device.
        """
        config = self.config
        # The learning rate of each group at this point of the schedule.
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * group["scale"] * config.schedule.factor(epoch, config.epochs)
        # Gradients of the micro-batches add up to that of the batch; processes average them at the last one.
        losses: list[Tensor] = []
        micro_batches = list(zip(images.chunk(config.accumulate), targets.chunk(config.accumulate), strict=True))
        for index, (inputs, labels) in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            with self._forward.no_sync() if isinstance(self._forward, DDP) and not is_last else nullcontext():
                with self._autocast:
                    logits = self._forward(inputs)
                loss = cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
                loss = loss * (len(inputs) / len(images))
                loss.backward()
            losses.append(loss.detach())
        # The step, and the moving average of the weights that it leads to.
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        return torch.stack(losses).sum()

    @property
    def eval_model(self) -> Classifier:
        """The model that is evaluated and kept: the moving average, if there is one."""
        return self.model if self.average is None else cast(Classifier, self.average.module)

    def state_dict(self) -> dict[str, Any]:
        """The whole state, in types that `torch.load(weights_only=True)` reads."""
        return {
            "initial": self.initial,
            "step": self.step,
            "seconds": self.seconds,
            "broken": sorted(self.broken),
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": asdict(self.best),
            "best_weights": self.best_weights,
            "val_broken": self.val_broken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state.

        Raises:
            ValueError: a state of version 0.2, or of a run that began with other weights.
        """
        if "initial" not in state:
            raise ValueError(
                f"{self.config.out} was begun by cls_transfer 0.2: finish it with that version, or start again"
            )
        if state["initial"] != self.initial:
            raise ValueError(
                f"{self.config.out} began with other weights than {self.config.checkpoint[0]} has now: "
                f"it cannot be resumed"
            )
        self.step, self.seconds, self.broken = state["step"], state["seconds"], set(state["broken"])
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.best, self.best_weights = Best(**state["best"]), state["best_weights"]
        self.val_broken = state["val_broken"]
