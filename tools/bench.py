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
python tools/bench.py startup           a command's answer, and a run's first batch, against import torch
"""

import argparse
import contextlib
import json
import pkgutil
import platform
import statistics
import sys
from typing import Any, Protocol

import tyro

from stillroom.backbone.command import report_errors

BENCHES = {
    "projection": "bench_projection:Projection",
    "step": "bench_distill:Step",
    "cache": "bench_distill:CachedEpoch",
    "monitor": "bench_distill:Monitored",
    "knn": "bench_knn:Knn",
    "linear": "bench_probe:Linear",
    "finetune": "bench_finetune:Finetune",
    "seg": "bench_seg:Seg",
    "det": "bench_det:Det",
    "startup": "bench_startup:Startup",
}
"""Where the settings of each are, which import torch and what they compare with."""


class Bench(Protocol):
    """Settings, and what they measure: any figures, and `speedup`, one ratio per pair of runs."""

    def figures(self) -> dict[str, Any]: ...


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def report(name: str, bench: Bench) -> None:
    """Print one JSON object: the benchmark, its settings, the machine, the figures, ratios with their spread."""
    import torch  # noqa: PLC0415  # --help needs none

    from stillroom.backbone.provenance import source_commit  # noqa: PLC0415  # it imports torch

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


@report_errors
def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=BENCHES, help="its own flags: bench.py BENCH --help")
    name = parser.parse_args(sys.argv[1:2]).bench
    report(name, tyro.cli(pkgutil.resolve_name(BENCHES[name]), prog=f"bench.py {name}", args=sys.argv[2:]))


if __name__ == "__main__":
    main()
