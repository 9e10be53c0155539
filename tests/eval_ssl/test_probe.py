"""Linear probes against a plain loop with autograd, torch's own SGD and scikit-learn's scaler."""

import numpy as np
import pytest
import torch
from clouds import clouds
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from stillroom.eval_ssl.config import Point
from stillroom.eval_ssl.probe import (
    Recipe,
    Standardise,
    batches,
    linear_probe,
    split_stratified,
    train_probes,
)
from stillroom.runs import Run
from stillroom.runs.progress import Progress
from stillroom.runs.schedule import Schedule, Step


def plain_loop(x: Tensor, y: Tensor, num_classes: int, point: Point, recipe: Recipe) -> nn.Linear:
    """What people write first, in float64."""
    layer = nn.Linear(x.shape[1], num_classes).double()
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), point.lr, momentum=recipe.momentum, weight_decay=point.weight_decay)
    steps = -(-len(x) // recipe.batch_size)
    for epoch in range(recipe.epochs):
        order = np.random.default_rng([recipe.seed, epoch]).permutation(len(x))
        for step in range(steps):
            rows = torch.from_numpy(order[step * recipe.batch_size : (step + 1) * recipe.batch_size])
            for group in optimizer.param_groups:
                group["lr"] = point.lr * recipe.schedule.factor(epoch + (step + 0.5) / steps, recipe.epochs)
            optimizer.zero_grad()
            cross_entropy(layer(x[rows].double()), y[rows]).backward()
            optimizer.step()
    return layer


GRID = [Point(lr=lr, weight_decay=decay) for lr in (0.01, 0.1, 0.5) for decay in (0.0, 1e-3)]


@pytest.mark.parametrize("schedule", [Recipe().schedule, Step(every=1, gamma=0.1)])
def test_every_point_of_a_grid_is_what_a_plain_loop_gives(schedule: Schedule) -> None:
    x, y = clouds()
    recipe = Recipe(epochs=2, batch_size=64, schedule=schedule)
    trained = train_probes(x, y, 5, GRID, recipe)
    for index, point in enumerate(GRID):
        layer = plain_loop(x, y, 5, point, recipe)
        assert (trained.weight[index].T.double() - layer.weight).abs().max() < 1e-6
        assert (trained.bias[index].double() - layer.bias).abs().max() < 1e-6


@pytest.mark.parametrize("at_once", [1, 4, 5])
def test_a_grid_in_groups_and_a_single_run_are_the_grid(at_once: int) -> None:
    x, y = clouds()
    recipe = Recipe(epochs=2, batch_size=64)
    together, groups = train_probes(x, y, 5, GRID, recipe), train_probes(x, y, 5, GRID, recipe, at_once=at_once)
    torch.testing.assert_close(groups.weight, together.weight, rtol=0, atol=1e-6)
    alone = train_probes(x, y, 5, [GRID[3]], recipe)
    torch.testing.assert_close(alone.weight[0], together.weight[3], rtol=0, atol=1e-6)
    assert alone.predict(x, 0).shape == (300, 5)
    one, all_at_once = (linear_probe(x, y, x, 5, GRID, recipe, at_once=each) for each in (at_once, None))
    assert one.point == all_at_once.point and torch.equal(one.logits, all_at_once.logits)


def test_each_image_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    recipe = Recipe(epochs=2, batch_size=64)
    steps = list(batches(150, recipe))
    assert [len(step) for step in steps] == [64, 64, 22] * 2
    orders = [torch.cat([step.rows for step in steps[i : i + 3]]).tolist() for i in (0, 3)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(150)) and orders[0] != orders[1]
    assert [step.epoch for step in steps] == pytest.approx([1 / 6, 3 / 6, 5 / 6, 7 / 6, 9 / 6, 11 / 6])


@pytest.mark.parametrize("unit", [False, True])
def test_features_are_standardised_by_the_training_ones(unit: bool) -> None:
    x, _ = clouds()
    other, _ = clouds(seed=1)
    given, asked = (normalize(each, dim=1) if unit else each for each in (x, other))
    scaler = StandardScaler().fit(given.double().numpy())
    expected = (asked.double().numpy() - scaler.mean_) / np.sqrt(scaler.var_ + 1e-5)
    np.testing.assert_allclose(Standardise.fit(x, unit=unit)(other).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_held_out_part_has_the_same_share_of_each_class() -> None:
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 2)
    kept, held = split_stratified(labels, 0.1, seed=0)
    assert labels[held].tolist() == [0, 0, 1, 2]
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(32))
    assert not torch.equal(held, split_stratified(labels, 0.1, seed=1)[1])
    with pytest.raises(ValueError, match="class number 1 has one training image"):
        split_stratified(torch.tensor([0, 0, 1]), 0.1, seed=0)
    with pytest.raises(ValueError, match=r"--held-out is 1\.0"):
        split_stratified(labels, 1.0, seed=0)


def test_the_best_point_on_the_held_out_part_is_trained_on_all(run: Run) -> None:
    (x, y), (other, truth) = clouds(), clouds(seed=1)
    recipe = Recipe(epochs=5, batch_size=64)
    points = [Point(lr=0.0, weight_decay=0.0), Point(lr=0.1, weight_decay=1e-4), Point(lr=1e-6, weight_decay=0.0)]
    progress = Progress(5 * (270 + 300), run, "linear")
    probed = linear_probe(x, y, other, 5, points, recipe, progress=progress)
    assert probed.point == points[1] and len(probed.accuracies) == 3 and max(probed.accuracies) > 0.6
    scale = Standardise.fit(x)
    expected = train_probes(scale(x), y, 5, [points[1]], recipe).predict(scale(other), 0)
    assert torch.equal(probed.logits, expected)
    accuracy = float((probed.logits.argmax(dim=1) == truth).float().mean())
    assert accuracy > 0.7
    one = linear_probe(x, y, other, 5, points[1:2], recipe)
    assert torch.equal(one.logits, expected) and one.accuracies == ()


@pytest.mark.parametrize(
    ("points", "text"),
    [
        ([], "the grid is empty"),
        ([Point(lr=-1.0, weight_decay=0.0)], "of the grid is negative or NaN"),
        ([Point(lr=float("nan"), weight_decay=0.0)], "negative or NaN"),
        ([Point(lr=1e30, weight_decay=1.0)], r"learning rate 1e\+30 diverged"),
    ],
)
def test_impossible_grids_are_one_sentence(points: list[Point], text: str) -> None:
    x, y = clouds()
    with pytest.raises(ValueError, match=text):
        linear_probe(x, y, x, 5, points, Recipe(epochs=2))


def test_a_point_that_diverged_is_never_chosen() -> None:
    x, y = clouds()
    y = torch.where(torch.rand(300, generator=torch.Generator().manual_seed(0)) < 0.9, 0, y)  # most are of class 0
    points = [Point(lr=1e30, weight_decay=1.0), Point(lr=0.1, weight_decay=0.0)]
    probed = linear_probe(x, y, x, 5, points, Recipe(epochs=2))
    assert probed.point == points[1] and probed.accuracies[0] == -1


def test_features_that_are_not_finite_are_one_sentence() -> None:
    x, y = clouds()
    broken = x.clone()
    broken[3, 2] = torch.nan
    for train, test in ((broken, x), (x, broken)):
        with pytest.raises(ValueError, match="some features are not finite: no classifier can be trained on them"):
            linear_probe(train, y, test, 5, GRID, Recipe())


def test_constant_features_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="the same feature for every training image: there is nothing to learn"):
        linear_probe(torch.ones(6, 3), torch.tensor([0, 1] * 3), torch.ones(2, 3), 2, GRID, Recipe())


def test_simregs_cached_recipe_is_a_plain_loop_on_unit_standardised_features() -> None:
    """To 1e-6 in the weights after two epochs, against torch's SGD in float64 on NumPy's own arithmetic."""
    (x, y), (other, _) = clouds(), clouds(seed=1)
    point, recipe = Point(lr=0.01, weight_decay=1e-4, unit=True), Recipe(epochs=2, schedule=Step(every=15, gamma=0.1))
    given, asked = (each.double().numpy() for each in (x, other))
    given, asked = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (given, asked))
    mean, std = given.mean(axis=0), np.sqrt(given.var(axis=0) + 1e-5)
    layer = plain_loop(torch.from_numpy((given - mean) / std), y, 5, point, recipe)
    trained = train_probes(Standardise.fit(x, unit=True)(x), y, 5, [point], recipe)
    assert recipe.momentum == 0.9 and recipe.batch_size == 256
    assert (trained.weight[0].T.double() - layer.weight).abs().max() < 1e-6
    assert (trained.bias[0].double() - layer.bias).abs().max() < 1e-6
    found = linear_probe(x, y, other, 5, [point], recipe)
    expected = layer(torch.from_numpy((asked - mean) / std)).detach()
    torch.testing.assert_close(found.logits.double(), expected, rtol=0, atol=1e-5)
