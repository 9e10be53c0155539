"""One process of a run: its device, its rank, its seeds, its directory."""

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stillroom.backbone.atomic import replace_directory, write_file
from stillroom.backbone.flags import DeviceName
from stillroom.backbone.launch import adopt_slurm
from stillroom.backbone.stopping import Stopped
from stillroom.runs.claims import refuse_lost
from stillroom.runs.run_files import CONFIG, METRICS, read_metrics, to_json
from stillroom.runs.saving import SaveClock
from stillroom.runs.states import StateWriter, drop_damaged, load_last_state, what_is_kept

_groups = itertools.count()  # of this process
TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others where one may work alone for long; a failure of one ends all sooner."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """This process: its device, and its rank among `world_size` processes."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @classmethod
    def start(cls, device: DeviceName = "auto") -> "Run":
        """Join the processes that torchrun or SLURM started, or run alone; ValueError if there is no such device."""
        found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        kind = next(name for name in found if found[name]) if device == "auto" else device
        if not found[kind]:
            raise ValueError(f"device {kind} is requested and torch sees none: pass --device cpu, or auto")
        adopt_slurm()
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls(device=torch.device(kind))
        if lacking := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise ValueError(f"WORLD_SIZE is {world_size}, but {lacking[0]} is not set: use torchrun, or unset both")
        place = torch.device(kind)
        if kind == "cuda":
            place = torch.device("cuda", local_gpu(torch.cuda.device_count()))
            torch.cuda.set_device(place)
        if not dist.is_initialized():
            gpu = place if kind == "cuda" else None
            backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store, rank, world_size = next(iter(dist.rendezvous("env://", timeout=TIMEOUT)))
            # a store outlives groups, torchrun's the processes too: it still holds where those of the last one listened
            store = dist.PrefixStore(f"attempt-{attempt}/{next(_groups)}", store)
            group = {"store": store, "rank": rank, "world_size": world_size}
            dist.init_process_group(backend, **group, timeout=TIMEOUT, device_id=gpu)
        return cls(device=place, rank=dist.get_rank(), world_size=world_size)

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


def local_gpu(count: int) -> int:
    """The index of this process's GPU among the `count` that it sees: its own, or the only one that SLURM shows it.

    Raises:
        ValueError: more processes than GPUs.
    """
    index = int(os.environ["LOCAL_RANK"])
    if count == 1 and "SLURM_PROCID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0  # --gpus-per-task=1; two tasks on one GPU are refused by NCCL
    if index >= count:
        raise ValueError(
            f"there are more processes than GPUs: pass --nproc-per-node {count} to torchrun, or --ntasks-per-node "
            f"{count} to SLURM"
        )
    return index


class DivergedError(ValueError):
    """A run whose loss or weights are NaN or infinite."""


class RunDirectory:
    """config.json, metrics.jsonl, tensorboard/ and state/ of one run. Only the main process writes.

    Args:
        path: the run directory.
        run: this process.
        first_step: the first that is logged.
        batch_size: images per step over all processes, which states record; None: not recorded.
    """

    def __init__(self, path: Path, run: Run, first_step: int = 0, batch_size: int | None = None) -> None:
        self.path = path
        self._run, self._batch_size = run, batch_size
        self._writes = run.is_main
        self._states = StateWriter(path)
        self._clock = SaveClock(run.rank, run.world_size)
        if self._writes:
            self._metrics = (path / METRICS).open("a", encoding="utf-8")
            self._board: Any = None  # with the first line: its thread would outlive a run that is refused before
            self._first_step = first_step

    @classmethod
    def create(cls, path: Path, config: str, run: Run, batch_size: int | None = None) -> "RunDirectory":
        """Make a new run directory with `config` (JSON text); ValueError if `path` exists."""
        taken = path.exists()
        run.wait()  # every process has checked before the main one makes it
        if taken:
            raise ValueError(
                f"{path} exists: choose another --out, or resume it with `resume {path}` or by --if-exists resume"
            )
        if run.is_main:
            with replace_directory(path) as partial:  # whole, or not there
                (partial / "state").mkdir()
                write_file(partial / CONFIG, config)
        run.wait()
        return cls(path, run, batch_size=batch_size)

    @classmethod
    def reopen(
        cls, path: Path, run: Run, batch_size: int | None = None
    ) -> tuple["RunDirectory", dict[str, Any] | None]:
        """Open a run to resume it from its last whole state, None if none was saved yet; later metrics are removed.

        Raises:
            ValueError: no state is whole; the state is of another batch size; the processes see different folders.
        """
        StateWriter.finish(path)
        state = load_last_state(path, says=run.is_main)
        step = 0 if state is None else int(state["step"])
        if len(steps := set(run.gather(step))) > 1:
            raise ValueError(
                f"the processes see states of the steps {sorted(steps)} in {path}: put the run into a folder that all "
                f"machines share"
            )
        saved = batch_size if state is None else state.get("batch_size", batch_size)
        if batch_size is not None and saved != batch_size:
            raise ValueError(
                f"the last state of {path} is of batch size {saved}, its config.json says {batch_size}: restore "
                f"{saved} (the number of processes may change, the global batch may not)"
            )
        if run.is_main:
            drop_damaged(path, state)
            kept = [row for row in read_metrics(path) if row["step"] <= step]
            write_file(path / METRICS, "".join(to_json(row) + "\n" for row in kept))
        run.wait()
        return cls(path, run, first_step=step + 1, batch_size=batch_size), state

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line of metrics.jsonl and one point per curve in TensorBoard.

        Raises:
            ClaimedError: another process has taken the run over.
        """
        if not self._writes:
            return
        refuse_lost(self.path)
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
        StateWriter.finish(self.path)
        return what_is_kept(self.path)

    def is_due(self, step: int, every: int | None, minutes: float) -> bool:
        """Whether a state is to be saved after this step, see `SaveClock.is_due`.

        Raises:
            OSError: the last state could not be written.
        """
        self._states.refuse_failed()
        return self._clock.is_due(step, every, minutes)

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Save tensors and plain values, with a `step`, as state/last.pt; the file is written while training goes on.

        Raises:
            DivergedError: a tensor is not finite.
            Stopped: a signal asked for it; the state is on disk then.
            OSError: the state before could not be written.
        """
        if not _all_finite(state):
            raise DivergedError(f"the weights are not finite at step {state['step']}: lower --lr; {self.kept}")
        self._clock.restart()
        if self._writes:
            recorded = {} if self._batch_size is None else {"batch_size": self._batch_size}
            self._states.write({**state, "world_size": self._run.world_size, **recorded})
        if self._clock.stop is not None:
            self._states.wait()
            self._run.wait()
            raise Stopped.at(self._clock.stop, int(state["step"]), self.path)

    def close(self) -> None:
        """Wait for the last state to be on disk, and flush the logs; afterwards a signal ends the run at once.

        Raises:
            ClaimedError: another process has taken the run over, which ends here, before its results are written.
        """
        self._states.wait()
        self._clock.close()
        if self._writes:
            self._metrics.close()
            if self._board is not None:
                self._board.close()
            refuse_lost(self.path)


def _all_finite(state: Any) -> bool:
    if isinstance(state, Tensor):
        return bool(state.isfinite().all())
    if isinstance(state, Mapping):
        return all(_all_finite(value) for value in state.values())
    if isinstance(state, list | tuple):
        return all(_all_finite(value) for value in state)
    return True
