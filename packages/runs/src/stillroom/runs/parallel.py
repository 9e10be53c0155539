"""Shared parts of training loops: gradient averaging (DDP), batch-norm statistics, weight averaging (EMA)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from stillroom.runs.run import Run


def wrap_ddp(module: nn.Module, run: Run, **arguments: Any) -> nn.Module:
    """Wrap a module on the run's device in DistributedDataParallel(**arguments); one process needs no wrapper."""
    if run.world_size == 1:
        return module
    return DistributedDataParallel(module, device_ids=[run.device] if run.device.type == "cuda" else None, **arguments)


def broadcast_buffers(module: nn.Module, run: Run) -> None:
    """Copy the main process's buffers to every process: batch norm collects its statistics per process."""
    if run.world_size > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


class MovingAverage(AveragedModel):
    """An exponential moving average of a module's weights and buffers; its state is that of torch's `AveragedModel`.

    The update is one foreach operation, and never waits for the device: torch's own copies its counter there each time.

    Args:
        module: whose copy is the average.
        decay: of the average per update; the first one copies.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__(module, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the present weights and buffers."""
        means = [*self.module.parameters(), *self.module.buffers()]
        values = [*model.parameters(), *model.buffers()]
        if self.n_averaged == 0:  # counted on the CPU
            torch._foreach_copy_(means, values)
        else:
            floats = [(mean, value) for mean, value in zip(means, values, strict=True) if mean.is_floating_point()]
            torch._foreach_lerp_([mean for mean, _ in floats], [value for _, value in floats], 1 - self.decay)
            for mean, value in zip(means, values, strict=True):
                if not mean.is_floating_point():  # a counter of batch norm
                    mean.copy_(mean * self.decay + value * (1 - self.decay))
        self.n_averaged += 1


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore an optimiser's state, perhaps from another kind of device: its kernels are fused as they are here."""
    groups = zip(state["param_groups"], optimizer.param_groups, strict=True)
    merged = [{**saved, "fused": ours["fused"]} if "fused" in ours else saved for saved, ours in groups]
    optimizer.load_state_dict({**state, "param_groups": merged})


def build_ema(module: nn.Module, decay: float) -> MovingAverage | None:
    """An exponential moving average of a module's weights and buffers; None for decay 0."""
    return MovingAverage(module, decay) if decay else None
