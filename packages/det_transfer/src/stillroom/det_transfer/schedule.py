"""The learning rate of a detection run: a linear warm-up, then steps down."""

from collections.abc import Sequence

WARMUP_START = 0.001
"""Multiple of the base learning rate at the first step of the warm-up."""
GAMMA = 0.1


def lr_multiplier(step: int, *, steps: int, warmup: int, drops: Sequence[float]) -> float:
    """The multiple of the base learning rate at a step: Detectron2's, except that the warm-up ignores the drops.

    Args:
        step: from 0.
        steps: in the whole run.
        warmup: steps of the linear warm-up.
        drops: fractions of the run after which the rate falls to a tenth.
    """
    if step < warmup:
        return WARMUP_START + (1 - WARMUP_START) * step / warmup
    return GAMMA ** sum(step >= round(drop * steps) for drop in drops)
