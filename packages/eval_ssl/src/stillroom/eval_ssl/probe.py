"""Linear probes of frozen features: many settings trained at once on features that were made once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from stillroom.backbone.image_files import shuffled_by_class
from stillroom.backbone.progress import Progress
from stillroom.backbone.schedule import Cosine, Schedule
from stillroom.eval_ssl.features import is_constant
from stillroom.eval_ssl.settings import Point, check_grid, check_share

_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a linear layer is trained: SGD with momentum on the cross-entropy, from zero weights.

    The problem is convex, so nothing is drawn but the order of the images.
    """

    epochs: int = 40
    batch_size: int = 256
    momentum: float = 0.9
    schedule: Schedule = field(default_factory=Cosine)
    seed: int = 0


@dataclass(frozen=True)
class Linear:
    """Several linear classifiers of the same features.

    Attributes:
        weight: (g, d, c).
        bias: (g, c).
    """

    weight: Float[Tensor, "g d c"]
    bias: Float[Tensor, "g c"]

    def predict(self, features: Float[Tensor, "n d"], place: int) -> Float[Tensor, "n c"]:
        """The logits of one of them."""
        return features @ self.weight[place] + self.bias[place]


@dataclass(frozen=True)
class Standardise:
    """(f - mean) / sqrt(variance + 1e-5) per dimension, of L2-normalised features if asked for.

    Attributes:
        mean, variance: (d,) of the training features, as they enter.
        unit: whether features are brought to unit length first.

    Reference: SimReg (Navaneet et al., BMVC 2021), linear evaluation: normalised, then standardised.
    """

    mean: Float[Tensor, " d"]
    variance: Float[Tensor, " d"]
    unit: bool = False

    @classmethod
    def fit(cls, features: Float[Tensor, "n d"], *, unit: bool = False) -> "Standardise":
        """Take the statistics of training features."""
        given = normalize(features.float(), dim=1) if unit else features.float()
        return cls(given.mean(dim=0), given.var(dim=0, correction=0), unit)

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Features of any images."""
        given = normalize(features.float(), dim=1) if self.unit else features.float()
        return (given - self.mean) / (self.variance + _EPS).sqrt()


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

    Side by side in one (d, g c) matrix the classifiers of a grid share each batch, its two products and every update;
    each sees the batches that it would see alone.

    Args:
        features: standardised, on the device to train on.
        labels: class numbers.
        num_classes: c.
        points: the grid, g of them.
        recipe: of all of them.
        at_once: points trained together, what memory allows; None: all.
        progress: a bar of the images, which each group of points goes through anew.

    Raises:
        ValueError: see `check_grid`.
    """
    check_grid(points)
    many = at_once or len(points)
    trained: list[Linear] = []
    for start in range(0, len(points), many):
        probes = SgdProbes(features.shape[1], num_classes, points[start : start + many], recipe, features.device)
        steps = batches(len(features), recipe)
        for batch in steps if progress is None else progress.over(steps, close=False):
            rows = batch.rows.to(features.device)
            probes.step(features[rows], labels[rows], batch.epoch)
        trained.append(probes.linear())
    return Linear(torch.cat([one.weight for one in trained]), torch.cat([one.bias for one in trained]))


@dataclass(frozen=True)
class Rows:
    """The images of one step, and its place in the run, epochs."""

    epoch: float
    rows: Int[Tensor, " b"]

    def __len__(self) -> int:
        return len(self.rows)


def batches(count: int, recipe: Recipe, first_epoch: int = 0) -> Iterator[Rows]:
    """The steps of a run: each image once an epoch, in an order drawn from the seed and the epoch."""
    steps = -(-count // recipe.batch_size)
    for epoch in range(first_epoch, recipe.epochs):
        order = torch.from_numpy(np.random.default_rng([recipe.seed, epoch]).permutation(count))
        for step, rows in enumerate(order.split(recipe.batch_size)):
            yield Rows(epoch + (step + 0.5) / steps, rows)


class SgdProbes:
    """Linear classifiers in training, a grid of them side by side in one (d, g c) matrix.

    The gradient is that of the mean cross-entropy, x^T (softmax - onehot) / b, plus weight decay.

    Args:
        dim: d.
        num_classes: c.
        points: the grid, g of them.
        recipe: of all of them.
        device: to train on.

    Attributes:
        state: weights and momentum, by name; all that a run needs to go on.
    """

    def __init__(
        self, dim: int, num_classes: int, points: Sequence[Point], recipe: Recipe, device: torch.device
    ) -> None:
        self.recipe, self.num_classes, self.many = recipe, num_classes, len(points)
        self._lr, self._decay = (
            torch.tensor([getattr(point, name) for point in points], device=device).repeat_interleave(num_classes)
            for name in ("lr", "weight_decay")
        )
        width = len(points) * num_classes
        shapes = {"weight": (dim, width), "speed": (dim, width), "bias": (width,), "bias_speed": (width,)}
        self.state = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
        self._slope = torch.empty(dim, width, device=device)

    @torch.no_grad()
    def step(self, x: Float[Tensor, "b d"], y: Int[Tensor, " b"], epoch: float) -> None:
        """One update from a batch, at this place in the run."""
        weight, speed, bias, bias_speed = (self.state[name] for name in ("weight", "speed", "bias", "bias_speed"))
        apart = torch.addmm(bias, x, weight).view(len(x), self.many, self.num_classes).softmax(dim=2)
        apart.scatter_add_(2, y[:, None, None].expand(-1, self.many, 1), apart.new_full((len(x), self.many, 1), -1))
        apart = apart.view(len(x), -1).div_(len(x))
        torch.mm(x.T, apart, out=self._slope)
        down = self._lr * -self.recipe.schedule.factor(epoch, self.recipe.epochs)
        speed.mul_(self.recipe.momentum).add_(self._slope).addcmul_(weight, self._decay)
        bias_speed.mul_(self.recipe.momentum).add_(apart.sum(dim=0)).addcmul_(bias, self._decay)
        weight.addcmul_(speed, down)
        bias.addcmul_(bias_speed, down)

    def linear(self) -> Linear:
        """The classifiers as they are now."""
        weight = self.state["weight"].view(-1, self.many, self.num_classes)
        return Linear(weight.permute(1, 0, 2).contiguous(), self.state["bias"].view(self.many, -1).clone())


def split_stratified(
    labels: Int[Tensor, " n"], share: float, seed: int, classes: Sequence[str] = ()
) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to hold out, the same share of each class, at least one of each on either side.

    Args:
        labels: class numbers.
        share: held out, (0, 1).
        seed: of the draw.
        classes: names, for the message.

    Raises:
        ValueError: a share outside (0, 1), a class with one image alone.
    """
    check_share(share)
    kept: list[int] = []
    held: list[int] = []
    for label, order in shuffled_by_class(labels.tolist(), seed).items():
        if len(order) < 2:
            name = classes[label] if classes else f"number {label}"
            raise ValueError(f"class {name} has one training image: there is none to hold out")
        count = min(max(1, round(share * len(order))), len(order) - 1)
        held += order[:count]
        kept += order[count:]
    return torch.tensor(sorted(kept)), torch.tensor(sorted(held))


@dataclass(frozen=True)
class ProbeResult:
    """A linear probe: what was chosen, and how well each point of the grid did on the held-out part.

    Attributes:
        point: the best of the grid.
        accuracies: top-1 of every point on the held-out part, fractions; one point alone is not held against any.
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
    readings: Mapping[str, slice] | None = None,
    held_out: float = 0.1,
    at_once: int | None = None,
    progress: Progress | None = None,
) -> ProbeResult:
    """Choose a point of the grid on a held-out part of the training features, then train it on all of them.

    Of points with equal accuracies the first wins. A grid of one point is trained once, on all features.

    Args:
        train_x, train_y: features and class numbers; standardised here by their own statistics.
        test_x: features to classify.
        num_classes, points, recipe, at_once, progress: see `train_probes`; points with the same reading are trained at
            once; the bar is of all passes, also the last one.
        readings: the columns of each reading; None: all columns are the reading `pooled`.
        held_out: share of each class that the choice is made on.

    Raises:
        ValueError: see `check_grid` and `split_stratified`; constant features; a chosen point that diverged.
    """
    check_features(train_x, test_x)
    check_grid(points)
    columns = {"pooled": slice(None)} if readings is None else readings
    chosen, accuracies = points[0], tuple[float, ...]()
    if len(points) > 1:
        kept, held = split_stratified(train_y.cpu(), held_out, recipe.seed)
        found: dict[Point, float] = {}
        for (reading, unit), group in groupby(points, key=lambda point: (point.reading, point.unit)):
            members, given = list(group), train_x[:, columns[reading]]
            scale = Standardise.fit(given[kept], unit=unit)
            grid = train_probes(
                scale(given[kept]), train_y[kept], num_classes, members, recipe, at_once=at_once, progress=progress
            )
            unseen = scale(given[held])
            for place, point in enumerate(members):
                found[point] = accuracy_of(grid.predict(unseen, place), train_y[held])
        accuracies = tuple(found[point] for point in points)
        chosen = points[accuracies.index(max(accuracies))]
    given, asked = (each[:, columns[chosen.reading]] for each in (train_x, test_x))
    scale = Standardise.fit(given, unit=chosen.unit)
    final = train_probes(scale(given), train_y, num_classes, [chosen], recipe, progress=progress)
    return ProbeResult(chosen, accuracies, check_converged(final.predict(scale(asked), 0), chosen))


def accuracy_of(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> float:
    """Top-1, a fraction; -1 for a classifier that diverged, which is then no choice."""
    if not bool(torch.isfinite(logits).all()):
        return -1.0
    return int((logits.argmax(dim=1) == labels).sum()) / len(labels)


def check_features(train_x: Float[Tensor, "n d"], test_x: Float[Tensor, "m d"]) -> None:
    """Refuse features that nothing can be learnt from.

    Raises:
        ValueError: some that are not finite; a constant backbone.
    """
    if not all(bool(torch.isfinite(each).all()) for each in (train_x, test_x)):
        raise ValueError("some features are not finite: nothing can be learnt from them")
    if is_constant(train_x):
        raise ValueError("the backbone gives the same feature for every training image: there is nothing to learn")


def check_converged(logits: Float[Tensor, "m c"], point: Point) -> Float[Tensor, "m c"]:
    """The logits of a probe, unless it diverged.

    Raises:
        ValueError: logits that are not finite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(f"the probe of learning rate {point.lr:g} diverged: give smaller --lrs")
    return logits
