"""What a run carries from step to step and writes down to be resumed from."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stillroom.backbone import Run, weights_sha256
from stillroom.cls_transfer.config import ClassifyConfig
from stillroom.cls_transfer.model import Classifier, build_groups


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best look at the held-out part: after which epoch, and its top-1; -1 before the first."""

    epoch: int = 0
    top1: float = -1.0


class TrainState:
    """The classifier in training, its running average, the optimiser, and how far the run has come.

    Args:
        config: of a single run.
        model: on the run's device, with its first weights.
        run: this process.

    Attributes:
        initial: `weights_sha256` of the backbone that the run began with.
        step: steps done.
        seconds: of earlier lives of the run.
        broken: why training images could not be read, in earlier lives.
        best: so far.
        best_weights: of it, on the CPU; None: nothing is chosen, or not yet.
        val_broken: why images of the held-out part could not be read.
    """

    def __init__(self, config: ClassifyConfig, model: Classifier, run: Run) -> None:
        self.config, self.model = config, model
        self.optimizer = torch.optim.SGD(
            build_groups(model, config.layer_decay), config.lr, momentum=config.momentum,
            weight_decay=config.weight_decay,
        )  # fmt: skip
        self.average = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
            if config.ema
            else None
        )
        self.initial = weights_sha256(model.backbone.net)
        self.step, self.best = 0, Best()
        self.seconds = 0.0
        self.broken: set[str] = set()
        self.best_weights: dict[str, Tensor] | None = None
        self.val_broken: list[str] = []
        learn: Any = torch.compile(model) if config.compile else model
        if run.world_size > 1:
            learn = DistributedDataParallel(learn, device_ids=[run.device] if run.device.type == "cuda" else None)
        self._learn = learn
        self._autocast = torch.autocast(run.device.type, torch.bfloat16, enabled=config.amp == "bf16")

    def advance(self, images: Float[Tensor, "b 3 h w"], targets: Tensor, epoch: float) -> Tensor:
        """One step down the gradient of the mean cross-entropy, at this place in the run; the loss, not read back."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * group["scale"] * config.schedule.factor(epoch, config.epochs)
        losses: list[Tensor] = []
        parts = list(zip(images.chunk(config.accumulate), targets.chunk(config.accumulate), strict=True))
        for place, (part, wanted) in enumerate(parts):
            wait = isinstance(self._learn, DistributedDataParallel) and place < len(parts) - 1
            with self._learn.no_sync() if wait else nullcontext():
                with self._autocast:
                    logits = self._learn(part)
                loss = cross_entropy(logits.float(), wanted, label_smoothing=config.label_smoothing)
                loss = loss * (len(part) / len(images))
                loss.backward()
            losses.append(loss.detach())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        return torch.stack(losses).sum()

    @property
    def leaving(self) -> Classifier:
        """What is measured and written: the running average, where there is one."""
        return self.model if self.average is None else cast(Classifier, self.average.module)

    def state_dict(self) -> dict[str, Any]:
        """All of it, in types that `torch.load(weights_only=True)` reads."""
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
        """Go on from there.

        Raises:
            ValueError: a state of an older version, or of a run that began with other weights.
        """
        if "initial" not in state:
            raise ValueError(f"{self.config.out} was begun by cls_transfer 0.2: finish it with that, or start anew")
        if state["initial"] != self.initial:
            raise ValueError(
                f"{self.config.out} began with other weights than {self.config.checkpoint[0]} has now: "
                f"it cannot be resumed"
            )
        self.step, self.seconds, self.broken = state["step"], state["seconds"], set(state["broken"])
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.best_weights = Best(**state["best"]), state["best_weights"]
        self.val_broken = state["val_broken"]
