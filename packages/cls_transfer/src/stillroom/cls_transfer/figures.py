"""Learning curves of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from stillroom.runs.figures import escape, save


def draw_curves(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw loss, held-out top-1 and learning rate over the epochs, from the lines of metrics.jsonl."""
    named = {"loss": "training loss", "val_top1": "held-out top-1, %", "lr": "learning rate"}
    logged = [name for name in named if any(name in row for row in rows)]
    figure = Figure(figsize=(7, 1 + 2.2 * len(logged)))
    figure.suptitle(escape(title))
    for index, name in enumerate(logged, start=1):
        axes = figure.add_subplot(len(logged), 1, index, ylabel=named[name])
        points = [row for row in rows if name in row]
        scale = 100 if name == "val_top1" else 1
        axes.plot([row["epoch"] for row in points], [scale * row[name] for row in points], marker=".", markersize=3)
        axes.grid(alpha=0.3)
        if index == len(logged):
            axes.set_xlabel("epoch")
    save(figure, path)
