"""Logistic regression to convergence, on all images or on a few per class."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from stillroom.eval_ssl.config import check_penalties
from stillroom.eval_ssl.probe import Standardise, accuracy_of, check_features, split_stratified
from stillroom.images.files import shuffled_by_class

TOLERANCE = 1e-5
"""Largest entry of the gradient at convergence."""
FEW_SHOT_TOLERANCE = 1e-8
"""Tolerance for few shots: L2-normalised features that differ little give small gradients from the start."""
ITERATIONS = 1000
"""L-BFGS iterations at most."""
_HISTORY = 10  # pairs of steps and gradients that L-BFGS stores


@dataclass(frozen=True)
class LogregFit:
    """A fitted classifier.

    Attributes:
        weight: (d, c), float64.
        bias: (c,), float64.
        max_gradient: the largest entry of the gradient at the end of the fit.
        iterations: of L-BFGS.
    """

    weight: Float[Tensor, "d c"]
    bias: Float[Tensor, " c"]
    max_gradient: float
    iterations: int

    def predict(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """The logits, float64."""
        return features.double() @ self.weight + self.bias


def fit_logreg(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    num_classes: int,
    penalty: float,
    *,
    tolerance: float = TOLERANCE,
    iterations: int = ITERATIONS,
    start: LogregFit | None = None,
) -> LogregFit:
    """Minimise mean cross-entropy + penalty / 2 |W|^2 over W and the bias, which is not penalised.

    L-BFGS with a strong Wolfe line search, in float64: the memory is 8 n d bytes. The problem is convex, so the
    starting point changes the time and not the result.

    Args:
        features: on any device that has float64.
        labels: class numbers.
        num_classes: c.
        penalty: scikit-learn's C is 1 / (n penalty).
        tolerance: largest entry of the gradient at convergence.
        iterations: at most.
        start: initial weights; None: zero.
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
        [weight, bias],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=tolerance,
        tolerance_change=0,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(x @ weight + bias, labels) + penalty / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    loss()
    assert weight.grad is not None and bias.grad is not None, "the loss has just been differentiated"
    max_gradient = max(float(weight.grad.abs().max()), float(bias.grad.abs().max()))
    num_iterations = int(optimizer.state[weight]["n_iter"])
    return LogregFit(weight.detach(), bias.detach(), max_gradient, num_iterations)


@dataclass(frozen=True)
class LogregResult:
    """A logistic regression with a chosen penalty.

    Attributes:
        penalty: the best one.
        accuracies: top-1 for every penalty on the held-out part, fractions; empty for a single penalty.
        logits: (m, c) of the test images.
        fits: largest gradient and iterations of every fit, one for each penalty and last the one to all of TRAIN.
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
) -> LogregResult:
    """Choose a penalty on a held-out part of the training features, then fit all of them.

    Features are standardised by the training ones. The penalties are fitted in the given order, each from the last
    solution; of equally good ones the first is chosen.

    Args:
        train_x, train_y, test_x: features and class numbers.
        num_classes, tolerance, iterations: see `fit_logreg`.
        penalties: the grid.
        held_out: fraction of each class to choose on.
        seed: of the held-out part.

    Raises:
        ValueError: see `check_penalties` and `split_stratified`; constant features.
    """
    check_features(train_x, test_x)
    check_penalties(penalties)
    chosen, accuracies, fits = penalties[0], list[float](), list[LogregFit]()
    fit = partial(fit_logreg, num_classes=num_classes, tolerance=tolerance, iterations=iterations)

    # Fit every penalty without the held-out part, and choose one.
    if len(penalties) > 1:
        kept, held = split_stratified(train_y.cpu(), held_out, seed)
        scale = Standardise.fit(train_x[kept])
        x, val_x = scale(train_x[kept]), scale(train_x[held])
        for penalty in penalties:
            start = fits[-1] if fits else None
            fits.append(fit(x, train_y[kept], penalty=penalty, start=start))
            accuracies.append(accuracy_of(fits[-1].predict(val_x), train_y[held]))
        chosen = penalties[accuracies.index(max(accuracies))]

    # Fit the chosen one to all of TRAIN.
    scale = Standardise.fit(train_x)
    fits.append(fit(scale(train_x), train_y, penalty=chosen))
    logits = fits[-1].predict(scale(test_x))
    return LogregResult(chosen, tuple(accuracies), logits, tuple((fit.max_gradient, fit.iterations) for fit in fits))


def draw_shots(labels: Int[Tensor, " n"], shots: int, seed: int, classes: Sequence[str] = ()) -> Int[Tensor, " k"]:
    """Draw `shots` rows of each class; a smaller draw with the same seed is part of a larger one.

    Args:
        labels: class numbers.
        shots: images per class.
        seed: of the draw.
        classes: names of all classes, for error messages; each of them needs images.

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
    """Fit a logistic regression to a few images per class, on L2-normalised features; return the logits.

    C is fixed, since there are no images to choose it on; the penalty is 1 / (C n).

    Args:
        train_x, train_y: features and class numbers to draw from.
        test_x: features to classify.
        num_classes: c.
        shots: images per class.
        seed: of the draw.
        inverse_penalty: C.
        classes: names, for error messages.

    Raises:
        ValueError: see `draw_shots`; constant features, or some that are not finite.

    Reference: Tian et al., "Rethinking few-shot image classification", ECCV 2020: logistic regression with C = 1 on
    L2-normalised features.
    """
    check_features(train_x, test_x)
    rows = draw_shots(train_y.cpu(), shots, seed, classes).to(train_x.device)
    x, queries = (normalize(each.float(), dim=1) for each in (train_x[rows], test_x))
    penalty = 1 / (inverse_penalty * len(rows))
    return fit_logreg(x, train_y[rows], num_classes, penalty, tolerance=FEW_SHOT_TOLERANCE).predict(queries)
