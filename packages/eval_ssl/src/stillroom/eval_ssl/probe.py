"""Linear probes of frozen features: a grid of settings trained at once, on features that were extracted once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from stillroom.eval_ssl.config import Point, check_grid, check_held_out
from stillroom.eval_ssl.features import is_constant
from stillroom.images.files import shuffled_by_class
from stillroom.runs.progress import Progress
from stillroom.runs.schedule import Cosine, Schedule

_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a linear layer is trained: SGD with momentum on the cross-entropy, from zero weights.

    The problem is convex, so only the order of the images is random, unless `as_released`.

    Args:
        epochs: passes over the features.
        batch_size: features per step.
        momentum: SGD momentum.
        schedule: of the learning rate.
        seed: of the order of the images, and of the held-out part.
        as_released: as SimReg's released code: standardise by the unbiased variance, and start where `nn.Linear` does,
            uniform in +-1/sqrt(d), drawn by the seed.
        drop_last: leave out the last batch of an epoch if it is partial.
    """

    epochs: int = 40
    batch_size: int = 256
    momentum: float = 0.9
    schedule: Schedule = field(default_factory=Cosine)
    seed: int = 0
    as_released: bool = field(default=False, repr=False)  # the text names the saved states of `train_augmented`
    drop_last: bool = field(default=False, repr=False)


@dataclass(frozen=True)
class Linear:
    """Several linear classifiers of the same features.

    Attributes:
        weight: (g, d, c).
        bias: (g, c).
    """

    weight: Float[Tensor, "g d c"]
    bias: Float[Tensor, "g c"]

    def predict(self, features: Float[Tensor, "n d"], index: int) -> Float[Tensor, "n c"]:
        """The logits of one of the classifiers."""
        return features @ self.weight[index] + self.bias[index]


@dataclass(frozen=True)
class Standardise:
    """(f - mean) / sqrt(variance + 1e-5) per dimension, after L2 normalisation if requested.

    Attributes:
        mean, variance: (d,) of the training features.
        unit: whether features are L2-normalised first.

    Reference: SimReg (Navaneet et al., BMVC 2021), linear evaluation: normalised, then standardised.
    """

    mean: Float[Tensor, " d"]
    variance: Float[Tensor, " d"]
    unit: bool = False

    @classmethod
    def fit(cls, features: Float[Tensor, "n d"], *, unit: bool = False, unbiased: bool = False) -> "Standardise":
        """Compute the statistics of training features; the unbiased variance divides by n - 1, not by n."""
        x = normalize(features.float(), dim=1) if unit else features.float()
        return cls(x.mean(dim=0), x.var(dim=0, correction=int(unbiased)), unit)

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Standardise features of any images."""
        x = normalize(features.float(), dim=1) if self.unit else features.float()
        return (x - self.mean) / (self.variance + _EPS).sqrt()


def train_probes(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    num_classes: int,
    points: Sequence[Point],
    recipe: Recipe,
    *,
    at_once: int | None = None,
    progress: Progress | None = None,
) -> Linear:
    """Train a linear classifier for every point of a grid, all in the same matrix products.

    Concatenated in one (d, g c) matrix, the classifiers share each batch, its two products and every update; each sees
    the batches that it would see alone.

    Args:
        features: standardised, on the device to train on.
        labels: class numbers.
        num_classes: c.
        points: the grid, g of them.
        recipe: how each of them is trained.
        at_once: points trained together, bounded by memory; None: all.
        progress: a bar over the images, all of which each group of points sees.

    Raises:
        ValueError: see `check_grid`; fewer features than one batch, where partial ones are left out.
    """
    check_grid(points)
    if recipe.drop_last and len(features) < recipe.batch_size:
        raise ValueError(
            f"{len(features)} images make no batch of {recipe.batch_size}, and partial batches are left out: "
            f"pass a smaller --probe-batch-size"
        )
    group_size = at_once or len(points)
    trained: list[Linear] = []
    for start in range(0, len(points), group_size):
        group = points[start : start + group_size]
        probes = SgdProbes(features.shape[1], num_classes, group, recipe, features.device)
        steps = batches(len(features), recipe)
        for batch in steps if progress is None else progress.over(steps, close=False):
            rows = batch.rows.to(features.device)
            probes.step(features[rows], labels[rows], batch.epoch)
        trained.append(probes.linear())
    return Linear(torch.cat([one.weight for one in trained]), torch.cat([one.bias for one in trained]))


@dataclass(frozen=True)
class Minibatch:
    """The rows of one step, and its time, a fractional epoch."""

    epoch: float
    rows: Int[Tensor, " b"]

    def __len__(self) -> int:
        return len(self.rows)


def batches(num_images: int, recipe: Recipe, first_epoch: int = 0) -> Iterator[Minibatch]:
    """The steps of a run: each image once per epoch, in an order drawn from the seed and the epoch.

    With `recipe.drop_last` the last images of that order, fewer than a batch, are left out.
    """
    num_steps = num_images // recipe.batch_size if recipe.drop_last else -(-num_images // recipe.batch_size)
    for epoch in range(first_epoch, recipe.epochs):
        order = torch.from_numpy(np.random.default_rng([recipe.seed, epoch]).permutation(num_images))
        for step, rows in enumerate(order.split(recipe.batch_size)[:num_steps]):
            yield Minibatch(epoch + (step + 0.5) / num_steps, rows)


class SgdProbes:
    """A grid of linear classifiers in training, concatenated in one (d, g c) matrix.

    The gradient is that of the mean cross-entropy, x^T (softmax - onehot) / b, plus weight decay.

    Args:
        dim: d.
        num_classes: c.
        points: the grid, g of them.
        recipe: how each of them is trained.
        device: to train on.

    Attributes:
        state: weights and momentum buffers, by name; all that a run needs to resume.
    """

    def __init__(
        self, dim: int, num_classes: int, points: Sequence[Point], recipe: Recipe, device: torch.device
    ) -> None:
        self.recipe, self.num_classes, self.num_points = recipe, num_classes, len(points)
        self._lr, self._decay = (
            torch.tensor([getattr(point, name) for point in points], device=device).repeat_interleave(num_classes)
            for name in ("lr", "weight_decay")
        )
        width = len(points) * num_classes
        shapes = {"weight": (dim, width), "speed": (dim, width), "bias": (width,), "bias_speed": (width,)}
        self.state = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
        if recipe.as_released:
            generator = torch.Generator().manual_seed(recipe.seed)
            for name in ("weight", "bias"):
                self.state[name].copy_(torch.rand(shapes[name], generator=generator) * 2 - 1).div_(dim**0.5)
        self._gradient = torch.empty(dim, width, device=device)

    @torch.no_grad()
    def step(self, x: Float[Tensor, "b d"], y: Int[Tensor, " b"], epoch: float) -> None:
        """Take one SGD step on a batch, with the learning rate of this fractional epoch."""
        weight, speed, bias, bias_speed = (self.state[name] for name in ("weight", "speed", "bias", "bias_speed"))

        # softmax - onehot, for every classifier.
        error = torch.addmm(bias, x, weight).view(len(x), self.num_points, self.num_classes).softmax(dim=2)
        targets = y[:, None, None].expand(-1, self.num_points, 1)
        error.scatter_add_(2, targets, error.new_full((len(x), self.num_points, 1), -1))
        error = error.view(len(x), -1).div_(len(x))

        # The gradient, the momentum buffers and the weights.
        torch.mm(x.T, error, out=self._gradient)
        step_size = self._lr * -self.recipe.schedule.factor(epoch, self.recipe.epochs)
        speed.mul_(self.recipe.momentum).add_(self._gradient).addcmul_(weight, self._decay)
        bias_speed.mul_(self.recipe.momentum).add_(error.sum(dim=0)).addcmul_(bias, self._decay)
        weight.addcmul_(speed, step_size)
        bias.addcmul_(bias_speed, step_size)

    def linear(self) -> Linear:
        """The classifiers as they are now."""
        weight = self.state["weight"].view(-1, self.num_points, self.num_classes)
        return Linear(weight.permute(1, 0, 2).contiguous(), self.state["bias"].view(self.num_points, -1).clone())


def split_stratified(
    labels: Int[Tensor, " n"], held_out: float, seed: int, classes: Sequence[str] = ()
) -> tuple[Tensor, Tensor]:
    """Split rows into a part to train on and a held-out part, with the same fraction and at least one row per class.

    Args:
        labels: class numbers.
        held_out: fraction of each class to hold out, (0, 1).
        seed: of the draw.
        classes: names, for the error message.

    Returns:
        Rows to train on and held-out rows, both in ascending order.

    Raises:
        ValueError: a fraction outside (0, 1), or a class with a single image.
    """
    check_held_out(held_out)
    train: list[int] = []
    val: list[int] = []
    for label, order in shuffled_by_class(labels.tolist(), seed).items():
        if len(order) < 2:
            name = classes[label] if classes else f"number {label}"
            raise ValueError(f"class {name} has one training image: there is none to hold out")
        count = min(max(1, round(held_out * len(order))), len(order) - 1)
        val += order[:count]
        train += order[count:]
    return torch.tensor(sorted(train)), torch.tensor(sorted(val))


@dataclass(frozen=True)
class ProbeResult:
    """A linear probe: the chosen point of the grid, and the accuracy of each on the held-out part.

    Attributes:
        point: the best of the grid.
        accuracies: top-1 of every point on the held-out part, fractions; -1 for one that diverged; empty for a grid of
            one point.
        logits: (m, c) of the test images.
    """

    point: Point
    accuracies: tuple[float, ...]
    logits: Float[Tensor, "m c"]


def linear_probe(
    train_x: Float[Tensor, "n d"],
    train_y: Int[Tensor, " n"],
    test_x: Float[Tensor, "m d"],
    num_classes: int,
    points: Sequence[Point],
    recipe: Recipe,
    *,
    feature_sources: Mapping[str, slice] | None = None,
    held_out: float = 0.1,
    at_once: int | None = None,
    progress: Progress | None = None,
) -> ProbeResult:
    """Choose a point of the grid on a held-out part of the training features, then train it on all of them.

    Of points with equal accuracies the first is chosen. A grid of one point is trained once, on all features.

    Args:
        train_x, train_y: features and class numbers; standardised here by their own statistics.
        test_x: features to classify.
        num_classes, points, recipe, at_once, progress: see `train_probes`; consecutive points with the same feature
            source are trained together; the bar is over all passes, including the last one.
        feature_sources: the columns of each feature source; None: all columns are the source `pooled`.
        held_out: fraction of each class to choose on.

    Raises:
        ValueError: see `check_grid` and `split_stratified`; constant features; a chosen point that diverged.
    """
    check_features(train_x, test_x)
    check_grid(points)
    columns = {"pooled": slice(None)} if feature_sources is None else feature_sources

    # Train the grid without the held-out part, one group per feature source and normalisation, and choose a point.
    chosen, accuracies = points[0], tuple[float, ...]()
    if len(points) > 1:
        kept, held = split_stratified(train_y.cpu(), held_out, recipe.seed)
        accuracy: dict[Point, float] = {}
        for (source, unit), group in groupby(points, key=lambda point: (point.feature_source, point.unit)):
            members, x = list(group), train_x[:, columns[source]]
            scale = Standardise.fit(x[kept], unit=unit, unbiased=recipe.as_released)
            grid = train_probes(
                scale(x[kept]), train_y[kept], num_classes, members, recipe, at_once=at_once, progress=progress
            )
            val_x = scale(x[held])
            for index, point in enumerate(members):
                accuracy[point] = accuracy_of(grid.predict(val_x, index), train_y[held])
        accuracies = tuple(accuracy[point] for point in points)
        chosen = points[accuracies.index(max(accuracies))]

    # Train the chosen point on all of TRAIN.
    x, queries = (each[:, columns[chosen.feature_source]] for each in (train_x, test_x))
    scale = Standardise.fit(x, unit=chosen.unit, unbiased=recipe.as_released)
    final = train_probes(scale(x), train_y, num_classes, [chosen], recipe, progress=progress)
    return ProbeResult(chosen, accuracies, check_converged(final.predict(scale(queries), 0), chosen))


def accuracy_of(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> float:
    """Top-1, a fraction; -1 for a classifier that diverged, so that it is never chosen."""
    if not bool(torch.isfinite(logits).all()):
        return -1.0
    return int((logits.argmax(dim=1) == labels).sum()) / len(labels)


def check_features(train_x: Float[Tensor, "n d"], test_x: Float[Tensor, "m d"]) -> None:
    """Refuse features that no classifier can be trained on.

    Raises:
        ValueError: features that are not finite, or all equal.
    """
    if not all(bool(torch.isfinite(each).all()) for each in (train_x, test_x)):
        raise ValueError("some features are not finite: no classifier can be trained on them")
    if is_constant(train_x):
        raise ValueError("the backbone gives the same feature for every training image: there is nothing to learn")


def check_converged(logits: Float[Tensor, "m c"], point: Point) -> Float[Tensor, "m c"]:
    """Return the logits of a probe, unless it diverged.

    Raises:
        ValueError: logits that are not finite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(f"the probe of learning rate {point.lr:g} diverged: pass smaller --lrs")
    return logits
