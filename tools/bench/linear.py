"""eval_ssl's linear probe: a grid at once, against its points one by one and against plain loops."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from bench.config import Linear
from stillroom.eval_ssl import Point, Recipe, train_probes


def figures(settings: Linear) -> dict[str, Any]:
    """Seconds of each, and their ratios to the grid."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(settings.n, settings.d, generator=generator)
    y = torch.randint(settings.classes, (settings.n,), generator=generator)
    grid = [Point(lr=0.001 * 1.5**index, weight_decay=1e-4) for index in range(settings.points)]
    recipe = Recipe(epochs=settings.epochs, batch_size=settings.batch)
    few = grid[: settings.loops]
    seconds: dict[str, list[float]] = {"grid": [], "singles": [], "loops": []}
    for _ in range(settings.repeats):
        seconds["grid"].append(timed(lambda: train_probes(x, y, settings.classes, grid, recipe)))
        seconds["singles"].append(timed(lambda: train_probes(x, y, settings.classes, grid, recipe, at_once=1)))
        loop = timed(lambda: [plain_loop(x, y, settings.classes, point, recipe) for point in few])
        seconds["loops"].append(loop * settings.points / settings.loops)
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
    """Train a linear probe as a first version would."""
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
