"""Pictures that several packages draw."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from torch import Tensor

_MATRIX_CLASSES = 40  # more of them: no room for names and numbers


def save(figure: Figure, path: Path) -> None:
    """Write a PNG."""
    figure.savefig(path, dpi=120, bbox_inches="tight")


def plain(name: str) -> str:
    """A name that matplotlib shows as it is: no dollar begins a formula, no underscore hides it from the legend."""
    return f" {name}".replace("$", r"\$")


def draw_confusion(
    path: Path, truth: Int[Tensor, " m"], predicted: Int[Tensor, " m"], classes: Sequence[str], title: str
) -> None:
    """Rows: the true class, columns: the answer, shares of the row in percent.

    Of more than 40 classes the squares have neither names nor numbers, and hardest.png beside has bars of the worst.
    """
    counts = torch.zeros(len(classes), len(classes))
    counts.index_put_((truth, predicted), torch.ones(len(truth)), accumulate=True)
    shares = 100 * counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    if len(classes) > _MATRIX_CLASSES:
        _draw_bars(path.with_name("hardest.png"), shares.diagonal(), counts.sum(dim=1) > 0, classes, title)
        _draw_squares(path, shares, title)
        return
    side = 2.5 + 0.42 * len(classes)
    figure = Figure(figsize=(side, side))
    axes = figure.add_subplot(
        title=plain(title), xlabel="answer", ylabel="true class", xticks=range(len(classes)), yticks=range(len(classes))
    )
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    axes.set_xticklabels(map(plain, classes), rotation=90)
    axes.set_yticklabels(map(plain, classes))
    for row, column in shares.round().nonzero().tolist():
        value = float(shares[row, column])
        colour = "white" if value > 50 else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    save(figure, path)


def _draw_squares(path: Path, shares: Float[Tensor, "c c"], title: str) -> None:
    figure = Figure(figsize=(8, 7))
    axes = figure.add_subplot(title=plain(title), xlabel="answer", ylabel="true class")
    squares = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(squares, label="share of the true class, %")
    save(figure, path)


def _draw_bars(
    path: Path, accuracy: Float[Tensor, " c"], tested: Bool[Tensor, " c"], classes: Sequence[str], title: str
) -> None:
    order = [int(i) for i in accuracy.argsort(stable=True) if tested[i]][:_MATRIX_CLASSES]
    figure = Figure(figsize=(7, 1 + 0.22 * len(order)))
    axes = figure.add_subplot(
        title=f"{plain(title)}: the {len(order)} hardest of {int(tested.sum())} classes",
        xlabel="top-1, %",
        xlim=(0, 100),
    )
    axes.barh([plain(classes[i]) for i in order], [float(accuracy[i]) for i in order], color="#33658a")
    axes.invert_yaxis()
    save(figure, path)
