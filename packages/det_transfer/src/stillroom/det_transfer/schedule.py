"""The learning rate of a detection run: a linear warm-up, then steps down."""

from stillroom.det_transfer.config import DetectConfig

START = 0.001
"""What the warm-up begins with, as a share of the rate."""
GAMMA = 0.1


def milestones(config: DetectConfig) -> list[int]:
    """Steps at which the rate falls, those after the last one left out."""
    return [step for step in (round(drop * config.steps) for drop in config.drops) if step < config.steps]


def factor(config: DetectConfig, step: int) -> float:
    """The multiple of the base learning rate that step `step`, from 0, uses."""
    if step < config.warmup:
        return START + (1 - START) * step / config.warmup
    return GAMMA ** sum(step >= drop for drop in milestones(config))
