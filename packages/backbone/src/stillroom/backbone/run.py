"""One process of a run: its device, its rank, its seeds, its directory."""

import io
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from stillroom.backbone.atomic import replace_directory, write_file
from stillroom.backbone.flags import DeviceName
from stillroom.backbone.run_files import CONFIG, METRICS, STATE, read_metrics, to_json
from stillroom.backbone.tensor_files import load_tensors


@dataclass(frozen=True, kw_only=True)
class Run:
    """This process: its device, and its rank among `world_size` processes."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @classmethod
    def start(cls, device: DeviceName = "auto") -> "Run":
        """Join the process group that torchrun started, or run alone; ValueError if there is no such device."""
        found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        kind = next(name for name in found if found[name]) if device == "auto" else device
        if not found[kind]:
            raise ValueError(f"device {kind} is requested and torch sees none: pass --device cpu, or auto")
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls(device=torch.device(kind))
        if lacking := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise ValueError(f"WORLD_SIZE is {world_size}, but {lacking[0]} is not set: use torchrun, or unset both")
        if kind == "cuda" and int(os.environ["LOCAL_RANK"]) >= (count := torch.cuda.device_count()):
            raise ValueError(f"there are more processes than GPUs: pass --nproc-per-node {count} to torchrun")
        if not dist.is_initialized():
            dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        local = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
        if local.type == "cuda":
            torch.cuda.set_device(local)
        return cls(device=local, rank=dist.get_rank(), world_size=world_size)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, item: Any) -> list[Any]:
        """Collect every process's `item`, in the order of the ranks."""
        if self.world_size == 1:
            return [item]
        items: list[Any] = [None] * self.world_size
        dist.all_gather_object(items, item)
        return items

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def mix_seed(*numbers: int) -> int:
    """One 63-bit seed from several whole numbers, such as (seed, epoch, index); neighbours give unrelated seeds."""
    entropy = (len(numbers), *numbers)  # the length, because NumPy pads with zeros: (1) would equal (1, 0)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_everything(*numbers: int) -> None:
    """Seed torch, NumPy and Python from whole numbers, such as (seed, step, rank)."""
    seed = mix_seed(*numbers)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


class DivergedError(ValueError):
    """A run whose loss or weights are NaN or infinite."""


class RunDirectory:
    """config.json, metrics.jsonl, tensorboard/ and state/ of one run. Only the main process writes."""

    def __init__(self, path: Path, run: Run, first_step: int = 0) -> None:
        self.path = path
        self._writes = run.is_main
        if self._writes:
            self._metrics = (path / METRICS).open("a", encoding="utf-8")
            self._board: Any = None  # with the first line: its thread would outlive a run that is refused before
            self._first_step = first_step

    @classmethod
    def create(cls, path: Path, config: str, run: Run) -> "RunDirectory":
        """Make a new run directory with `config` (JSON text); ValueError if `path` exists."""
        taken = path.exists()
        run.wait()  # every process has checked before the main one makes it
        if taken:
            raise ValueError(f"{path} exists: choose another --out, or resume it with `resume {path}`")
        if run.is_main:
            with replace_directory(path) as partial:  # whole, or not there
                (partial / "state").mkdir()
                write_file(partial / CONFIG, config)
        run.wait()
        return cls(path, run)

    @classmethod
    def reopen(cls, path: Path, run: Run) -> tuple["RunDirectory", dict[str, Any] | None]:
        """Open a run to resume it from its last state, None if none was saved yet; later metrics are removed."""
        file = path / STATE
        advice = f"remove it, and {path} is resumed from its first step"
        state = load_tensors(file, advice=advice) if file.exists() else None
        step = state.get("step") if isinstance(state, dict) else 0 if state is None else None
        if not isinstance(step, int):
            raise ValueError(f"{file} is damaged, it has no step: {advice}")
        if run.is_main:
            kept = [row for row in read_metrics(path) if row["step"] <= step]
            write_file(path / METRICS, "".join(to_json(row) + "\n" for row in kept))
        run.wait()
        return cls(path, run, first_step=step + 1), state

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line of metrics.jsonl and one point per curve in TensorBoard."""
        if not self._writes:
            return
        try:
            self._metrics.write(to_json({"step": step, **values}) + "\n")
            self._metrics.flush()
            if self._board is None:
                from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # not every command opens a run

                self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=self._first_step)
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:  # of a buffer, which does not know its file
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    @property
    def kept(self) -> str:
        """The end of a message about a diverged run: whether there is a state to resume from."""
        return "the last good state is kept" if (self.path / STATE).exists() else "no state had been saved yet"

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace state/last.pt by tensors and plain values, with a `step`; DivergedError if any is not finite."""
        if not _all_finite(state):
            raise DivergedError(f"the weights are not finite at step {state['step']}: lower --lr; {self.kept}")
        if not self._writes:
            return
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_file(self.path / STATE, buffer.getvalue())

    def close(self) -> None:
        """Flush the logs."""
        if self._writes:
            self._metrics.close()
            if self._board is not None:
                self._board.close()


def _all_finite(state: Any) -> bool:
    if isinstance(state, Tensor):
        return bool(state.isfinite().all())
    if isinstance(state, Mapping):
        return all(_all_finite(value) for value in state.values())
    if isinstance(state, list | tuple):
        return all(_all_finite(value) for value in state)
    return True
