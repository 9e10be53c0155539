"""Fit an SVD alignment: streamed moments and eigh against the thin SVD of the gathered features."""

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stillroom.distill import Moments, SvdAlignment


@dataclass(frozen=True)
class Projection:
    """Fit an SVD alignment: streamed moments and eigh, against torch.linalg.svd of the gathered, centred features."""

    n: int = 131072
    """Images."""
    d: int = 2048
    """Dimensions of the feature."""
    dim: int = 512
    """Components kept."""
    batch: int = 64
    """Features per update, as they come from a teacher."""
    repeats: int = 3
    """Pairs of runs, interleaved."""

    def figures(self) -> dict[str, Any]:
        """Seconds and memory of both."""
        pairs = [(self.measure(streamed), self.measure(gathered)) for _ in range(self.repeats)]
        ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in pairs]
        return {
            "ours_seconds": [ours["seconds"] for ours, _ in pairs],
            "svd_seconds": [theirs["seconds"] for _, theirs in pairs],
            "speedup": ratios,
            "ours_extra_mib": max(ours["extra_mib"] for ours, _ in pairs),
            "svd_extra_mib": max(theirs["extra_mib"] for _, theirs in pairs),
        }

    def measure(self, task: Callable[["Projection"], float]) -> dict[str, float]:
        """Run a task in a fresh process: seconds of its own work, and the growth of its peak memory in MiB."""
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            return pool.apply(measured, (task, self))

    def batches(self) -> Iterator[Tensor]:
        """Features with a falling spectrum and a mean, drawn batch by batch."""
        generator = torch.Generator().manual_seed(0)
        scales = torch.logspace(0, -2, self.d)
        for _ in range(self.n // self.batch):
            yield torch.randn(self.batch, self.d, generator=generator) * scales + 1.0


def streamed(bench: Projection) -> float:
    """Ours; the drawing of the features is not counted."""
    moments, spent = Moments(bench.d), 0.0
    for features in bench.batches():
        began = time.perf_counter()
        moments.update(features)
        spent += time.perf_counter() - began
    began = time.perf_counter()
    SvdAlignment(moments.dim, bench.dim).fit(moments)
    return spent + time.perf_counter() - began


def gathered(bench: Projection) -> float:
    """The released KDEP script's way: all features in memory, centred, decomposed."""
    features = torch.empty(bench.n, bench.d)
    for index, rows in enumerate(bench.batches()):
        features[index * bench.batch : (index + 1) * bench.batch] = rows
    began = time.perf_counter()
    features -= features.mean(dim=0)
    torch.linalg.svd(features, full_matrices=False)
    return time.perf_counter() - began


def measured(task: Callable[[Any], float], bench: Any) -> dict[str, float]:
    """Seconds of a task, and how far it raised this process's peak memory, MiB."""
    torch.linalg.eigh(torch.eye(64))  # libraries are loaded before the first reading
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = task(bench)
    return {"seconds": seconds, "extra_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}
