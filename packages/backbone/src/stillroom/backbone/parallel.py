"""Shared parts of training loops: gradient averaging (DDP), batch-norm statistics, weight averaging (EMA)."""

from typing import Any

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stillroom.backbone.run import Run


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


def build_ema(module: nn.Module, decay: float) -> AveragedModel | None:
    """An exponential moving average of a module's weights and buffers; None for decay 0."""
    if not decay:
        return None
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
