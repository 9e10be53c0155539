"""When a state is saved: by the clock, by steps, and when a signal asks for one; the same in every process."""

import time

import torch
import torch.distributed as dist
from torch import Tensor

from stillroom.backbone.stopping import leave_loop, requested_stop


class SaveClock:
    """Tells a training loop after each step whether a state is due.

    Several processes agree on the clock and on signals one step later, because none waits for the others.

    Args:
        rank, world_size: of this process; the clock of the first one counts.

    Attributes:
        stop: the signal that ends the run after the state; None: none came.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.stop: str | None = None
        self._is_main, self._world_size = rank == 0, world_size
        self._saved_at = time.monotonic()
        self._asked: tuple[dist.Work, Tensor] | None = None

    def is_due(self, step: int, every: int | None, minutes: float) -> bool:
        """Whether a state is to be saved after this step. Called once after each step, by every process.

        Args:
            step: steps done.
            every: steps between two states; None: by the clock alone.
            minutes: minutes between two states; 0: by `every` alone.
        """
        late = self._is_main and minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes
        asks_to_stop, is_late = self._agree(requested_stop() is not None, late)
        if asks_to_stop:
            self.stop = requested_stop() or "a signal to another process"
        if is_late:
            self.restart()
        return asks_to_stop or is_late or (every is not None and step % every == 0)

    def restart(self) -> None:
        """Count the minutes from now on: a state is being saved."""
        self._saved_at = time.monotonic()

    def _agree(self, asks_to_stop: bool, is_late: bool) -> tuple[bool, bool]:
        """What any process asked for in the step before; a single process is answered at once."""
        if self._world_size == 1:
            return asks_to_stop, is_late
        stop, late = False, False
        if self._asked is not None:
            work, flags = self._asked
            work.wait()
            stop, late = map(bool, flags)
        flags = torch.tensor([asks_to_stop and not stop, is_late and not late]).int()
        self._asked = (dist.all_reduce(flags, dist.ReduceOp.MAX, async_op=True), flags)
        return stop, late

    def close(self) -> None:
        """The loop is over: from now on a signal ends the run at once."""
        if self._asked is not None:
            self._asked[0].wait()
            self._asked = None
        leave_loop()
