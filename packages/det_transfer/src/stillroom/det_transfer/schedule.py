"""The learning rate of a detection run: a linear warm-up, then steps down."""

from collections.abc import Sequence

START = 0.001
"""What the warm-up begins with, as a share of the rate."""
GAMMA = 0.1


def factor(step: int, *, steps: int, warmup: int, drops: Sequence[float]) -> float:
    """The multiple of the base learning rate that a step uses: Detectron2's, but the warm-up knows of no drop.

    Args:
        step: from 0.
        steps: of the run.
        warmup: steps of the rise.
        drops: shares of the steps after which the rate falls to a tenth.
    """
    if step < warmup:
        return START + (1 - START) * step / warmup
    return GAMMA ** sum(step >= round(drop * steps) for drop in drops)
