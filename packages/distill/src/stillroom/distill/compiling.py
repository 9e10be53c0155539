"""`--compile`: nets that are compiled after the first steps, and the seconds of a step before and after."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

EAGER_STEPS = 8
"""Steps before the nets are compiled; by the step alone, so that a resumed run does what an uninterrupted one does."""
_EAGER = (3, 8)  # steps after which the clock is read
_COMPILED = (13, 18)  # the steps between compile, for every kernel that they need


@dataclass
class CompileTrial:
    """Compares the seconds of a step without and with torch.compile.

    Args:
        device: of the nets; it is waited for at four of the first 18 steps.
    """

    device: torch.device
    _read: dict[int, float] = field(default_factory=dict)

    def read(self, step: int) -> str | None:
        """Read the clock after a step where it is due; the comparison after the last reading, else None."""
        if step not in (*_EAGER, *_COMPILED):
            return None
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self._read[step] = time.perf_counter()
        if step != _COMPILED[1] or len(self._read) < 4:  # of a resumed run, some readings are missing
            return None
        eager, compiled = ((self._read[last] - self._read[first]) / 5 for first, last in (_EAGER, _COMPILED))
        advice = "; leave out --compile" if compiled > eager else ""
        return f"compiled: {compiled:.3g} s a step, {eager:.3g} s without, {eager / compiled:.2f} times as fast{advice}"


def compiled(nets: Sequence[Any]) -> list[Any]:
    """The nets, compiled by torch.compile when they are first called."""
    return [torch.compile(net) for net in nets]
