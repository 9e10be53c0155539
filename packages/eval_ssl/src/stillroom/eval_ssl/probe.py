"""Linear probes of frozen features: many settings trained at once on features that were made once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from stillroom.backbone.progress import Progress
from stillroom.backbone.schedule import Cosine, Schedule

_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting of a grid."""

    lr: float
    weight_decay: float


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


def check_grid(points: Sequence[Point]) -> None:
    """Refuse a grid that cannot be trained.

    Raises:
        ValueError: an empty one, a negative setting.
    """
    if not points:
        raise ValueError("the grid is empty: give at least one --lrs and one --weight-decays")
    if min(min(point.lr, point.weight_decay) for point in points) < 0:
        raise ValueError("a learning rate or a weight decay of the grid is negative")


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
    groups = [points[start : start + many] for start in range(0, len(points), many)]
    trained = [_train_group(features, labels, num_classes, group, recipe, progress) for group in groups]
    return Linear(torch.cat([one.weight for one in trained]), torch.cat([one.bias for one in trained]))


@dataclass(frozen=True)
class Rows:
    """The images of one step, and its place in the run, epochs."""

    epoch: float
    rows: Int[Tensor, " b"]

    def __len__(self) -> int:
        return len(self.rows)


def batches(count: int, recipe: Recipe) -> Iterator[Rows]:
    """The steps of a run: each image once an epoch, in an order drawn from the seed and the epoch."""
    steps = -(-count // recipe.batch_size)
    for epoch in range(recipe.epochs):
        order = torch.from_numpy(np.random.default_rng([recipe.seed, epoch]).permutation(count))
        for step, rows in enumerate(order.split(recipe.batch_size)):
            yield Rows(epoch + (step + 0.5) / steps, rows)


@torch.no_grad()
def _train_group(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    points: Sequence[Point],
    recipe: Recipe,
    progress: Progress | None,
) -> Linear:
    """The gradient is that of the mean cross-entropy, x^T (softmax - onehot) / b, plus weight decay on the weights."""
    device, dim = features.device, features.shape[1]
    lr = torch.tensor([point.lr for point in points], device=device).repeat_interleave(num_classes)
    decay = torch.tensor([point.weight_decay for point in points], device=device).repeat_interleave(num_classes)
    weight = torch.zeros(dim, len(points) * num_classes, device=device)
    bias = torch.zeros(len(points) * num_classes, device=device)
    speed, bias_speed, slope = torch.zeros_like(weight), torch.zeros_like(bias), torch.empty_like(weight)
    steps = batches(len(features), recipe)
    for batch in steps if progress is None else progress.over(steps, close=False):
        rows = batch.rows.to(device)
        x, y = features[rows], labels[rows]
        apart = torch.addmm(bias, x, weight).view(len(x), len(points), num_classes).softmax(dim=2)
        apart.scatter_add_(2, y[:, None, None].expand(-1, len(points), 1), apart.new_full((len(x), len(points), 1), -1))
        apart = apart.view(len(x), -1).div_(len(x))
        torch.mm(x.T, apart, out=slope)
        down = lr * -recipe.schedule.factor(batch.epoch, recipe.epochs)
        speed.mul_(recipe.momentum).add_(slope).addcmul_(weight, decay)
        bias_speed.mul_(recipe.momentum).add_(apart.sum(dim=0)).addcmul_(bias, decay)
        weight.addcmul_(speed, down)
        bias.addcmul_(bias_speed, down)
    return Linear(
        weight.view(dim, len(points), num_classes).permute(1, 0, 2).contiguous(), bias.view(len(points), num_classes)
    )


def check_share(share: float) -> None:
    """Refuse a share that leaves one side empty.

    Raises:
        ValueError: outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"--held-out is {share}: it must lie in (0, 1)")


def split_stratified(labels: Int[Tensor, " n"], share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to hold out, the same share of each class, at least one of each on either side.

    Raises:
        ValueError: a share outside (0, 1), a class with one image alone.
    """
    check_share(share)
    kept: list[int] = []
    held: list[int] = []
    for label in sorted(set(labels.tolist())):
        members = np.flatnonzero(labels.numpy() == label)
        if len(members) < 2:
            raise ValueError(f"class number {label} has one training image: there is none to hold out")
        order = np.random.default_rng([seed, label]).permutation(members).tolist()
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held += order[:count]
        kept += order[count:]
    return torch.tensor(sorted(kept)), torch.tensor(sorted(held))


@dataclass(frozen=True)
class Probed:
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
    held_out: float = 0.1,
    unit: bool = False,
    at_once: int | None = None,
    progress: Progress | None = None,
) -> Probed:
    """Choose a point of the grid on a held-out part of the training features, then train it on all of them.

    Of points with equal accuracies the first wins. A grid of one point is trained once, on all features.

    Args:
        train_x, train_y: features and class numbers; standardised here by their own statistics.
        test_x: features to classify.
        num_classes, points, recipe, at_once, progress: see `train_probes`; the bar is of all passes, also the last one.
        held_out: share of each class that the choice is made on.
        unit: see `Standardise`.

    Raises:
        ValueError: see `check_grid` and `split_stratified`; constant features; a chosen point that diverged.
    """
    if bool((train_x == train_x[0]).all()):
        raise ValueError("the backbone gives the same feature for every training image: there is nothing to learn")
    check_grid(points)
    chosen, accuracies = points[0], tuple[float, ...]()
    if len(points) > 1:
        kept, held = split_stratified(train_y.cpu(), held_out, recipe.seed)
        scale = Standardise.fit(train_x[kept], unit=unit)
        grid = train_probes(
            scale(train_x[kept]), train_y[kept], num_classes, points, recipe, at_once=at_once, progress=progress
        )
        unseen = scale(train_x[held])
        accuracies = tuple(
            float((grid.predict(unseen, place).argmax(dim=1) == train_y[held]).double().mean())
            for place in range(len(points))
        )
        chosen = points[accuracies.index(max(accuracies))]
    scale = Standardise.fit(train_x, unit=unit)
    final = train_probes(scale(train_x), train_y, num_classes, [chosen], recipe, progress=progress)
    logits = final.predict(scale(test_x), 0)
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(f"the probe of learning rate {chosen.lr:g} diverged: give smaller --lrs")
    return Probed(chosen, accuracies, logits)
