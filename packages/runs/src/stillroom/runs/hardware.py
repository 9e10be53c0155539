"""What this machine has, and what `auto` makes of it: processes that decode images, number formats, TF32."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from torch import nn

from stillroom.backbone.flags import Amp, Workers
from stillroom.runs.run import Run

N = TypeVar("N", bound=nn.Module)

MAX_WORKERS = 64
MAX_CPU_WORKERS = 16
MIN_SHARE = 32
"""Images per device and step below which batch norm is noisy and a GPU is idle."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CAST = (nn.Linear, nn.Conv2d)  # exactly these: a subclass may compute with its weight before it multiplies


def usable_cores() -> int:
    """The number of CPU cores that the processes of this machine may use together."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_per_process() -> int:
    """The CPU cores of one process: those of the machine, or of SLURM's task, over the processes that share them.

    A task is one process, or torchrun, which starts several.
    """
    of_task = int(os.environ.get("SLURM_CPUS_PER_TASK", "0"))
    cores = min(usable_cores(), of_task or usable_cores())
    is_task = of_task > 0 and "TORCHELASTIC_RUN_ID" not in os.environ
    return cores if is_task else max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def choose_workers(workers: Workers) -> int:
    """The number of processes that decode images.

    `auto` is one for each core of this process, at most 64, where a GPU computes. Where the cores compute too, it is
    one less than the cores, at least 1 and at most 16.
    """
    if workers != "auto":
        return workers
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return min(cores_per_process(), MAX_WORKERS)
    return max(1, min(cores_per_process() - 1, MAX_CPU_WORKERS))


def has_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 instructions: on a CPU without them bf16 is many times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def float64_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU where it has no float64, as an Apple GPU has none."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def choose_amp(amp: Amp, device: torch.device) -> Literal["none", "bf16", "fp16"]:
    """The number format of forward passes in training.

    `auto` is bf16 on a CUDA GPU that has it and fp16, with a scaled loss, on an older one. On CPUs and Apple GPUs it is
    none: there a run gives the same numbers on every machine, and resumes to the bit on another CPU. A CPU with
    bfloat16 instructions is asked for them by `bf16`.
    """
    if amp != "auto":
        return amp
    if device.type != "cuda":
        return "none"
    return "bf16" if has_bf16(device) else "fp16"


def autocast(amp: Amp, device: torch.device) -> torch.autocast:
    """The autocast context of a number format; it does nothing for `none`."""
    amp = choose_amp(amp, device)
    return torch.autocast(device.type, DTYPES.get(amp, torch.bfloat16), enabled=amp != "none")


def hold_weights(net: N, amp: Amp, device: torch.device) -> N:
    """A copy of a frozen net for `autocast`, whose matrices and kernels are held in the number format of the products.

    Autocast casts the weights of a frozen net anew in every forward pass (a ResNet-50: 109 casts). The copy gives the
    same bits without them. Every other parameter, such as a layer norm's, stays float32. For `none` it is the net.
    """
    amp = choose_amp(amp, device)
    if amp == "none":
        return net
    held = copy.deepcopy(net)
    for module in held.modules():
        if type(module) in _CAST:
            for name, weights in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(weights.detach().to(DTYPES[amp]), requires_grad=False))
    return held


@contextmanager
def fast_float32(device: torch.device) -> Iterator[None]:
    """On a CUDA GPU: float32 products in TF32, and convolutions by the algorithm that measures fastest."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    deterministic = torch.backends.cudnn.deterministic
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=not deterministic, deterministic=deterministic):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Float32 products as they are: TF32 would round their factors to 10 bits, and hide the rank of a feature."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def batch_warnings(batch_size: int, run: Run) -> list[str]:
    """A warning where a global batch leaves few images to each device; none for a single process on a CPU."""
    share = batch_size // run.world_size
    if share >= MIN_SHARE or (run.device.type != "cuda" and run.world_size == 1):
        return []
    return [
        f"--batch-size {batch_size} counts the images of all {run.world_size} processes and leaves {share} to each "
        f"device: under {MIN_SHARE}, batch norm is noisy and GPUs idle; pass at least {MIN_SHARE * run.world_size}, "
        f"or start fewer processes"
    ]
