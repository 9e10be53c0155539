"""Figures that several packages draw."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from torch import Tensor

_MATRIX_CLASSES = 40  # with more, there is no room for names and numbers


def save(figure: Figure, path: Path) -> None:
    """Write a PNG."""
    figure.savefig(path, dpi=120, bbox_inches="tight")


def escape(name: str) -> str:
    """Escape a name for matplotlib: a dollar would begin a formula, a leading underscore hides it from the legend."""
    return f" {name}".replace("$", r"\$")


def draw_confusion(
    path: Path, truth: Int[Tensor, " m"], predicted: Int[Tensor, " m"], classes: Sequence[str], title: str
) -> None:
    """Draw a confusion matrix: rows are true classes, columns predictions, in percent of the row.

    With more than 40 classes the squares have neither names nor numbers, and hardest.png has bars of the worst classes.
    """
    counts = torch.zeros(len(classes), len(classes))
    counts.index_put_((truth, predicted), torch.ones(len(truth)), accumulate=True)
    shares = 100 * counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    labelled = len(classes) <= _MATRIX_CLASSES
    side = 2.5 + 0.42 * len(classes)
    figure = Figure(figsize=(side, side) if labelled else (8, 7))
    axes = figure.add_subplot(title=escape(title), xlabel="prediction", ylabel="true class")
    squares = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100, interpolation=None if labelled else "nearest")
    if labelled:
        names = [escape(name) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90)
        axes.set_yticks(range(len(classes)), names)
        for row, column in shares.round().nonzero().tolist():
            value = float(shares[row, column])
            colour = "white" if value > 50 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    else:
        figure.colorbar(squares, label="percent of the true class")
        _draw_bars(path.with_name("hardest.png"), shares.diagonal(), counts.sum(dim=1) > 0, classes, title)
    save(figure, path)


def _draw_bars(
    path: Path, accuracy: Float[Tensor, " c"], tested: Bool[Tensor, " c"], classes: Sequence[str], title: str
) -> None:
    order = [int(i) for i in accuracy.argsort(stable=True) if tested[i]][:_MATRIX_CLASSES]
    figure = Figure(figsize=(7, 1 + 0.22 * len(order)))
    axes = figure.add_subplot(
        title=f"{escape(title)}: the {len(order)} hardest of {int(tested.sum())} classes",
        xlabel="top-1, %",
        xlim=(0, 100),
    )
    axes.barh([escape(classes[i]) for i in order], [float(accuracy[i]) for i in order], color="#33658a")
    axes.invert_yaxis()
    save(figure, path)
