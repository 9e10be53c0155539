"""Logistic regression to convergence, on all images of TRAIN or on a few of each class."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from stillroom.backbone.image_files import shuffled_by_class
from stillroom.eval_ssl.probe import Standardise, accuracy_of, check_features, split_stratified
from stillroom.eval_ssl.settings import check_penalties

TOLERANCE = 1e-5
FEW_SHOT_TOLERANCE = 1e-8
"""Features of unit length that differ little give small gradients from the start."""
ITERATIONS = 1000
_HISTORY = 10  # pairs of steps and gradients that L-BFGS remembers


@dataclass(frozen=True)
class Logreg:
    """A fitted classifier.

    Attributes:
        weight: (d, c), float64.
        bias: (c,).
        slope: the largest entry of the gradient where the fit ended.
        iterations: of L-BFGS.
    """

    weight: Float[Tensor, "d c"]
    bias: Float[Tensor, " c"]
    slope: float
    iterations: int

    def predict(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """The logits."""
        return features.double() @ self.weight + self.bias


def fit_logreg(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    num_classes: int,
    penalty: float,
    *,
    tolerance: float = TOLERANCE,
    iterations: int = ITERATIONS,
    start: Logreg | None = None,
) -> Logreg:
    """Minimise the mean cross-entropy + penalty / 2 |W|^2 over W and the bias, which is not penalised.

    L-BFGS with a strong Wolfe line search, in float64: the memory is 8 n d bytes. The problem is convex, so the
    starting point changes the time and not the result.

    Args:
        features: on any device that has float64.
        labels: class numbers.
        num_classes: c.
        penalty: l; scikit-learn's C is 1 / (n l).
        tolerance: converged where no entry of the gradient is larger.
        iterations: at most.
        start: where to begin; None: zero.
    """
    x = features.double()
    weight, bias = (
        each.clone().requires_grad_()
        for each in (
            (x.new_zeros(x.shape[1], num_classes), x.new_zeros(num_classes))
            if start is None
            else (start.weight, start.bias)
        )
    )
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, max_eval=2 * iterations, tolerance_grad=tolerance, tolerance_change=0,
        history_size=_HISTORY, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(x @ weight + bias, labels) + penalty / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    loss()
    assert weight.grad is not None and bias.grad is not None, "the loss has just been differentiated"
    slope = max(float(weight.grad.abs().max()), float(bias.grad.abs().max()))
    steps = int(optimizer.state[weight]["n_iter"])
    return Logreg(weight.detach(), bias.detach(), slope, steps)


@dataclass(frozen=True)
class Regressed:
    """A logistic regression whose penalty was chosen.

    Attributes:
        penalty: the best one.
        accuracies: top-1 for every penalty on the held-out part, fractions; one alone is not held against any.
        logits: (m, c) of the test images.
        fits: what was fitted to all of TRAIN last, and before it for every penalty: largest gradient and iterations.
    """

    penalty: float
    accuracies: tuple[float, ...]
    logits: Float[Tensor, "m c"]
    fits: tuple[tuple[float, int], ...]


def logistic_regression(
    train_x: Float[Tensor, "n d"],
    train_y: Int[Tensor, " n"],
    test_x: Float[Tensor, "m d"],
    num_classes: int,
    penalties: Sequence[float],
    *,
    held_out: float = 0.1,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    iterations: int = ITERATIONS,
) -> Regressed:
    """Choose a penalty on a held-out part of the training features, then fit all of them.

    Features are standardised by the training ones. The penalties are fitted in the given order, each from the last; of
    equally good ones the first wins.

    Args:
        train_x, train_y, test_x: features and class numbers.
        num_classes, tolerance, iterations: see `fit_logreg`.
        penalties: the grid.
        held_out: share of each class that the choice is made on.
        seed: of that part.

    Raises:
        ValueError: see `check_penalties` and `split_stratified`; constant features.
    """
    check_features(train_x, test_x)
    check_penalties(penalties)
    chosen, accuracies, fits = penalties[0], list[float](), list[Logreg]()
    fit = partial(fit_logreg, num_classes=num_classes, tolerance=tolerance, iterations=iterations)
    if len(penalties) > 1:
        kept, held = split_stratified(train_y.cpu(), held_out, seed)
        scale = Standardise.fit(train_x[kept])
        known, unseen = scale(train_x[kept]), scale(train_x[held])
        for penalty in penalties:
            start = fits[-1] if fits else None
            fits.append(fit(known, train_y[kept], penalty=penalty, start=start))
            accuracies.append(accuracy_of(fits[-1].predict(unseen), train_y[held]))
        chosen = penalties[accuracies.index(max(accuracies))]
    scale = Standardise.fit(train_x)
    fits.append(fit(scale(train_x), train_y, penalty=chosen))
    logits = fits[-1].predict(scale(test_x))
    return Regressed(chosen, tuple(accuracies), logits, tuple((fit.slope, fit.iterations) for fit in fits))


def draw_shots(labels: Int[Tensor, " n"], shots: int, seed: int, classes: Sequence[str] = ()) -> Int[Tensor, " k"]:
    """Rows of `shots` images of each class; a smaller draw of the same seed is part of a larger one.

    Args:
        labels: class numbers.
        shots: images of each.
        seed: of the draw.
        classes: names of all classes, for the messages; none of them may be without an image.

    Raises:
        ValueError: a class with fewer images.
    """
    rows: list[int] = []
    if absent := [name for label, name in enumerate(classes) if label not in set(labels.tolist())]:
        raise ValueError(f"{len(absent)} classes have no training image, for instance {absent[0]}")
    for label, order in shuffled_by_class(labels.tolist(), seed).items():
        if len(order) < shots:
            name = classes[label] if classes else f"number {label}"
            raise ValueError(f"class {name} has {len(order)} training images: {shots} shots need more")
        rows += order[:shots]
    return torch.tensor(rows)


def few_shot(
    train_x: Float[Tensor, "n d"],
    train_y: Int[Tensor, " n"],
    test_x: Float[Tensor, "m d"],
    num_classes: int,
    shots: int,
    seed: int,
    *,
    inverse_penalty: float = 1.0,
    classes: Sequence[str] = (),
) -> Float[Tensor, "m c"]:
    """The logits of a logistic regression from a few images of each class, on features of unit length.

    Nothing is chosen, for there is nothing to choose it on: C is fixed, so that the penalty is 1 / (C n).

    Args:
        train_x, train_y: features and class numbers, of which a few are drawn.
        test_x: features to classify.
        num_classes: c.
        shots: images per class.
        seed: of the draw.
        inverse_penalty: C.
        classes: names, for the messages.

    Raises:
        ValueError: see `draw_shots`; constant features, or some that are not finite.

    Reference: Tian et al., "Rethinking few-shot image classification", ECCV 2020: logistic regression with C = 1 on
    L2-normalised features.
    """
    check_features(train_x, test_x)
    rows = draw_shots(train_y.cpu(), shots, seed, classes).to(train_x.device)
    x, asked = (normalize(each.float(), dim=1) for each in (train_x[rows], test_x))
    penalty = 1 / (inverse_penalty * len(rows))
    return fit_logreg(x, train_y[rows], num_classes, penalty, tolerance=FEW_SHOT_TOLERANCE).predict(asked)
