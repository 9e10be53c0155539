"""The benchmark of eval_ssl's linear probe: a grid at once, against single runs and against plain loops."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from stillroom.eval_ssl import Point, Recipe, train_probes


@dataclass(frozen=True)
class Linear:
    """A grid of linear probes on kept features: one matrix, the same points one by one, a DataLoader loop for each."""

    n: int = 50_000
    """Features."""
    d: int = 512
    """Dimensions."""
    classes: int = 100
    """Classes."""
    points: int = 16
    """Of the grid."""
    epochs: int = 2
    """Passes; each costs the same."""
    batch: int = 256
    """Features per step."""
    repeats: int = 3
    """Rounds, all of them in turn."""
    loops: int = 1
    """Points that the plain loop trains; its seconds are scaled up."""

    def figures(self) -> dict[str, Any]:
        """Seconds of each, and their ratios to the grid."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.n, self.d, generator=generator)
        y = torch.randint(self.classes, (self.n,), generator=generator)
        grid = [Point(lr=0.001 * 1.5**place, weight_decay=1e-4) for place in range(self.points)]
        recipe = Recipe(epochs=self.epochs, batch_size=self.batch)
        few = grid[: self.loops]
        seconds: dict[str, list[float]] = {"grid": [], "singles": [], "loops": []}
        for _ in range(self.repeats):
            seconds["grid"].append(timed(lambda: train_probes(x, y, self.classes, grid, recipe)))
            seconds["singles"].append(timed(lambda: train_probes(x, y, self.classes, grid, recipe, at_once=1)))
            loop = timed(lambda: [plain_loop(x, y, self.classes, point, recipe) for point in few])
            seconds["loops"].append(loop * self.points / self.loops)
        pairs = list(zip(seconds["grid"], seconds["singles"], seconds["loops"], strict=True))
        return {
            "seconds": seconds,
            "share_of_singles": [grid / singles for grid, singles, _ in pairs],
            "speedup": [loops / grid for grid, _, loops in pairs],
        }


def timed(task: Callable[[], object]) -> float:
    """Seconds of a task."""
    began = time.perf_counter()
    task()
    return time.perf_counter() - began


def plain_loop(x: Tensor, y: Tensor, num_classes: int, point: Point, recipe: Recipe) -> None:
    """A linear probe as people write it first."""
    layer = nn.Linear(x.shape[1], num_classes)
    optimizer = torch.optim.SGD(layer.parameters(), point.lr, momentum=recipe.momentum, weight_decay=point.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    loader = DataLoader(TensorDataset(x, y), recipe.batch_size, shuffle=True)
    for _ in range(recipe.epochs):
        for features, labels in loader:
            optimizer.zero_grad()
            cross_entropy(layer(features), labels).backward()
            optimizer.step()
        schedule.step()
