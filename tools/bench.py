"""Ours against the reference, side by side in one run: ratios with their spread, as JSON. Nothing here is a test.

python tools/bench.py projection        Moments + eigh against the thin SVD of the gathered features
python tools/bench.py step              distill's step against a plain loop
python tools/bench.py loader            the loader with one worker against ImageFolder and v1 transforms
python tools/bench.py cache             an epoch with cached teacher outputs against a live one
python tools/bench.py monitor           a run with the monitors at their defaults against one without
python tools/bench.py knn               exact neighbours against faiss and scikit-learn
python tools/bench.py linear            a grid of linear probes against single runs and plain loops
python tools/bench.py finetune          fine-tuning against a plain torchvision script
python tools/bench.py seg               a segmentation step against MMSegmentation with its own config
python tools/bench.py det               a detection step against Detectron2 with its own loader; needs Detectron2
python tools/bench.py startup           a command's answer, and a run's first batch, against import torch
python tools/bench.py listing           a list of a million files, to the first batch, against a tuple of paths
"""

import argparse
import contextlib
import importlib
import json
import sys
from typing import Any

import tyro

from bench import config
from stillroom.backbone.command import report_errors

SETTINGS = {
    "projection": config.Projection,
    "step": config.Step,
    "loader": config.Loader,
    "cache": config.Cache,
    "monitor": config.Monitor,
    "knn": config.Knn,
    "linear": config.Linear,
    "finetune": config.Finetune,
    "seg": config.Seg,
    "det": config.Det,
    "startup": config.Startup,
    "listing": config.Listing,
}
"""Benchmark -> its settings; the module bench/<benchmark>.py is imported when it runs."""


def report(name: str, settings: Any) -> None:
    """Run a benchmark and print one JSON object: its settings, the machine, the figures, the spread of the ratios."""
    import torch  # noqa: PLC0415  # --help needs none

    from bench.machine import cpu_name  # noqa: PLC0415
    from bench.spread import spread  # noqa: PLC0415
    from stillroom.backbone.provenance import source_commit  # noqa: PLC0415  # it imports torch

    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the JSON alone
        figures = importlib.import_module(f"bench.{name}").figures(settings)
    figures["speedup"] = spread(figures["speedup"])  # one ratio per pair of runs
    machine = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "commit": source_commit(),
    }
    print(json.dumps({"bench": name, "settings": vars(settings), "machine": machine, **figures}, indent=2, default=str))


@report_errors
def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=SETTINGS, help="each has flags of its own: bench.py BENCH --help")
    name = parser.parse_args(sys.argv[1:2]).bench
    report(name, tyro.cli(SETTINGS[name], prog=f"bench.py {name}", args=sys.argv[2:]))


if __name__ == "__main__":
    main()
