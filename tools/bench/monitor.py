"""A run with the monitors at their defaults against one without."""

import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.config import Monitor
from bench.images import write_images
from stillroom.distill import DistillConfig, Students, Teachers, distill
from stillroom.distill.config import Cache
from stillroom.distill.config import Monitor as MonitorConfig
from stillroom.runs import read_results


def figures(settings: Monitor) -> dict[str, Any]:
    """Seconds per step of both, and the share that the monitors add."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["STILLROOM_CACHE"] = str(root / "cache")
        write_images(root / "images", settings.images)
        monitored = DistillConfig(
            teacher=Teachers(name=("random:cifar/resnet20",), size=(32,)),
            student=Students(name=("cifar/resnet20",)),
            data=root / "images",
            out=root / "fill",
            epochs=settings.epochs,
            batch_size=64,
            lr=0.01,
            cache=Cache(views=1),
        )
        alone = replace(monitored, monitor=MonitorConfig(held_out=0.0))
        seconds: dict[str, list[float]] = {"watched": [], "alone": []}
        for repeat in range(settings.repeats + 1):  # the first pair fills the caches and does not count
            for name, config in (("watched", monitored), ("alone", alone)):
                results = read_results(distill(replace(config, out=root / f"{name}-{repeat}")))
                if repeat:
                    seconds[name].append(results.seconds / results.extra["steps"])
    return {
        **{f"{name}_seconds_per_step": values for name, values in seconds.items()},
        "share": statistics.median(seconds["watched"]) / statistics.median(seconds["alone"]) - 1,
        "speedup": [b / a for a, b in zip(seconds["watched"], seconds["alone"], strict=True)],
    }
