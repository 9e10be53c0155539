"""Fit an SVD alignment: streamed moments and eigh against the thin SVD of the gathered features."""

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.config import Projection
from stillroom.distill import Moments, SvdAlignment


def figures(settings: Projection) -> dict[str, Any]:
    """Seconds and extra memory of both, MiB."""
    pairs = [(in_new_process(streamed, settings), in_new_process(gathered, settings)) for _ in range(settings.repeats)]
    ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in pairs]
    return {
        "ours_seconds": [ours["seconds"] for ours, _ in pairs],
        "svd_seconds": [theirs["seconds"] for _, theirs in pairs],
        "speedup": ratios,
        "ours_extra_mib": max(ours["extra_mib"] for ours, _ in pairs),
        "svd_extra_mib": max(theirs["extra_mib"] for _, theirs in pairs),
    }


def in_new_process(task: Callable[[Projection], float], settings: Projection) -> dict[str, float]:
    """Run a task in a new process: seconds of its own work, and the growth of the process's peak memory, MiB."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(measure, (task, settings))


def draw_batches(settings: Projection) -> Iterator[Tensor]:
    """Features with a falling spectrum and a nonzero mean, drawn batch by batch."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -2, settings.d)
    for _ in range(settings.n // settings.batch):
        yield torch.randn(settings.batch, settings.d, generator=generator) * scales + 1.0


def streamed(settings: Projection) -> float:
    """Fit ours; returns seconds without those of drawing the features."""
    moments, spent = Moments(settings.d), 0.0
    for features in draw_batches(settings):
        began = time.perf_counter()
        moments.update(features)
        spent += time.perf_counter() - began
    began = time.perf_counter()
    SvdAlignment(moments.dim, settings.dim).fit(moments)
    return spent + time.perf_counter() - began


def gathered(settings: Projection) -> float:
    """Fit as KDEP's released script does: gather all features, centre them, decompose them; returns seconds."""
    features = torch.empty(settings.n, settings.d)
    for index, rows in enumerate(draw_batches(settings)):
        features[index * settings.batch : (index + 1) * settings.batch] = rows
    began = time.perf_counter()
    features -= features.mean(dim=0)
    torch.linalg.svd(features, full_matrices=False)
    return time.perf_counter() - began


def measure(task: Callable[[Projection], float], settings: Projection) -> dict[str, float]:
    """Seconds of a task, and how much it raised this process's peak memory, MiB."""
    torch.linalg.eigh(torch.eye(64))  # loads the libraries before the first reading of memory
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = task(settings)
    return {"seconds": seconds, "extra_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}
