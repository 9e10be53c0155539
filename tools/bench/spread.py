"""How far repeated measurements spread."""

import statistics

import numpy as np


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def median_interval(values: list[float], share: float = 0.95, draws: int = 4000) -> tuple[float, float]:
    """Confidence interval of the median by the bootstrap (Efron 1979): percentiles of the medians of resamples.

    Args:
        values: the measurements.
        share: the confidence level, (0, 1).
        draws: number of resamples.
    """
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (draws, len(values))), axis=1)
    low, high = np.quantile(medians, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
