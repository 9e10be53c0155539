"""Ours against the reference, side by side in one run: ratios with their spread, as JSON. Nothing here is a test.

python tools/bench.py projection        Moments + eigh against the thin SVD of the gathered features
python tools/bench.py step              distill's step against a plain loop
python tools/bench.py cache             an epoch with cached teacher outputs against a live one
python tools/bench.py monitor           a run with the monitors at their defaults against one without
python tools/bench.py knn               exact neighbours against faiss and scikit-learn
python tools/bench.py linear            a grid of linear probes against single runs and plain loops
python tools/bench.py finetune          fine-tuning against a plain torchvision script
python tools/bench.py seg               a segmentation step against MMSegmentation from its own config
python tools/bench.py det               a detection step against Detectron2 with its own loader; needs Detectron2
"""

import contextlib
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import tyro
from torch import Tensor

from bench_det import Det
from bench_distill import CachedEpoch, Monitored, Step
from bench_finetune import Finetune
from bench_knn import Knn
from bench_probe import Linear
from bench_seg import Seg
from stillroom.backbone.command import plainly
from stillroom.backbone.provenance import source_commit
from stillroom.distill import Moments, SvdAlignment


class Bench(Protocol):
    """Settings, and what they measure: any figures, and `speedup`, one ratio per pair of runs."""

    def figures(self) -> dict[str, Any]: ...


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


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def report(name: str, bench: Bench) -> None:
    """Print one JSON object: the benchmark, its settings, the machine, the figures, ratios with their spread."""
    with contextlib.redirect_stdout(sys.stderr):  # what a run says, but for its figures
        figures = bench.figures()
    figures["speedup"] = spread(figures["speedup"])
    machine = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "commit": source_commit(),
    }
    print(json.dumps({"bench": name, "settings": vars(bench), "machine": machine, **figures}, indent=2, default=str))


def cpu_name() -> str:
    """The processor, as precisely as the system says it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


BENCHES: dict[str, Callable[..., Bench]] = {
    "projection": Projection,
    "step": Step,
    "cache": CachedEpoch,
    "monitor": Monitored,
    "knn": Knn,
    "linear": Linear,
    "finetune": Finetune,
    "seg": Seg,
    "det": Det,
}


@plainly
def main() -> None:
    """Run one benchmark."""
    bench = tyro.extras.subcommand_cli_from_dict(BENCHES, description=__doc__)
    report(next(name for name, kind in BENCHES.items() if kind is type(bench)), bench)


if __name__ == "__main__":
    main()
