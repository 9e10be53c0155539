"""k-nearest-neighbour classification: votes of the neighbours, and what they score."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillroom.eval_ssl.config import TEMPERATURE, Backend, Metric, Vote
from stillroom.eval_ssl.neighbours import (
    check_k,
    nearest_neighbours,
    prepare,
    search_torch,
)
from stillroom.eval_ssl.settings import check_temperature

_ROWS = 1024  # whose votes for every class are held at once
_RANKING_BYTES = 40  # of each training image, for each test image that ranks them


@dataclass(frozen=True)
class Predictions:
    """What the neighbours of each test image say.

    Attributes:
        predicted: (m,) the class of most votes.
        rank: (m,) the place of the true class among those with votes, from 1; 0 where it has none.
        first: (m,) the place of the nearest neighbour of the true class, from 1; 0 where there is none.
    """

    predicted: Int[Tensor, " m"]
    rank: Int[Tensor, " m"]
    first: Int[Tensor, " m"]

    def metrics(self) -> dict[str, float]:
        """Top-1, top-5 and the mean reciprocal rank of the first neighbour of the true class, fractions."""
        return {
            "top1": float((self.rank == 1).double().mean()),
            "top5": float(((self.rank >= 1) & (self.rank <= 5)).double().mean()),
            "mrr": float((self.first.double().reciprocal() * (self.first > 0)).nan_to_num(0).mean()),
        }


def knn_classify(
    train_x: Float[Tensor, "n d"],
    train_y: Int[Tensor, " n"],
    test_x: Float[Tensor, "m d"] | None,
    k: Sequence[int],
    num_classes: int | None = None,
    *,
    vote: Vote = "majority",
    temperature: float = TEMPERATURE,
    metric: Metric = "cosine",
    backend: Backend = "torch",
    memory_gib: float = 1.0,
) -> dict[int, Int[Tensor, " m"]]:
    """Predict each test row's class by a vote of its k nearest training rows, for every k in one pass.

    Among classes with equally many votes, the one whose nearest member is nearest wins.

    Args:
        train_x, train_y: features and class numbers of the training images.
        test_x: features to classify; None: the training rows, each by the others (leave-one-out).
        k: numbers of neighbours.
        num_classes: at least the largest class number plus one; None takes just that.
        vote: equal votes, or exp(similarity / temperature), of a cosine or of minus a squared distance.
        temperature: of the weighted vote.
        metric, backend, memory_gib: see `nearest_neighbours`.

    Returns:
        k -> predicted class numbers.

    Raises:
        ValueError: see `check_k` and `nearest_neighbours`.

    Reference: SimReg (Navaneet et al., BMVC 2021), section 4.1, evaluates with k = 1 and 20 and breaks ties at random.
    The weighted vote is that of Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
    CVPR 2018, section 3.4, with the same temperature.
    """
    check_k(k, len(train_x) - (test_x is None))
    near, rows = nearest_neighbours(train_x, test_x, max(k), metric=metric, backend=backend, memory_gib=memory_gib)
    voters = train_y.to(rows.device)[rows]
    weights = weigh(near, vote, temperature)
    return {number: tally(weights[:, :number], voters[:, :number], num_classes)[0] for number in k}


def answer(
    near: Float[Tensor, "m k"],
    voters: Int[Tensor, "m k"],
    truth: Int[Tensor, " m"],
    k: Sequence[int],
    num_classes: int | None = None,
    *,
    vote: Vote = "majority",
    temperature: float = TEMPERATURE,
) -> dict[int, Predictions]:
    """What the first k neighbours say, for every k.

    Args:
        near: similarities, nearest first.
        voters: class numbers of the neighbours.
        truth: class numbers of the test images.
        k, num_classes, vote, temperature: see `knn_classify`.
    """
    weights, answers = weigh(near, vote, temperature), {}
    for number in k:
        classes = voters[:, :number]
        predicted, votes, nearest = tally(weights[:, :number], classes, num_classes)
        right = classes == truth[:, None]
        first = torch.where(right.any(dim=1), right.int().argmax(dim=1) + 1, 0)
        place = torch.arange(1, number + 1, device=votes.device)
        own = votes.gather(1, (first[:, None] - 1).clamp(min=0))
        ahead = nearest & ((votes > own) | ((votes == own) & (place < first[:, None])))
        rank = torch.where(first > 0, ahead.sum(dim=1) + 1, 0)
        answers[number] = Predictions(predicted.cpu(), rank.cpu(), first.cpu())
    return answers


def weigh(near: Float[Tensor, "m k"], vote: Vote, temperature: float) -> Float[Tensor, "m k"]:
    """The weight of each neighbour's vote, over that of the nearest, so that nothing overflows."""
    check_temperature(temperature)
    if vote == "majority":
        return torch.ones_like(near)
    return ((near - near[:, :1]).double() / temperature).exp()


def tally(
    weights: Float[Tensor, "m k"], voters: Int[Tensor, "m k"], num_classes: int | None = None
) -> tuple[Int[Tensor, " m"], Float[Tensor, "m k"], Bool[Tensor, "m k"]]:
    """Count the votes.

    Returns:
        The class of most votes, of several with equally many the one whose nearest member is nearest; the votes of each
        neighbour's class; and whether a neighbour is the nearest of its class.
    """
    many = int(voters.max()) + 1 if num_classes is None else num_classes
    place = torch.arange(voters.shape[1], device=voters.device)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for given, classes in zip(weights.split(_ROWS), voters.split(_ROWS), strict=True):
        votes = torch.zeros(len(classes), many, dtype=given.dtype, device=given.device).scatter_add_(1, classes, given)
        first = torch.full((len(classes), many), voters.shape[1], device=classes.device)
        first.scatter_reduce_(1, classes, place.expand_as(classes), "amin")
        of_class = votes.gather(1, classes)
        leads = of_class == of_class.max(dim=1, keepdim=True).values
        winner = classes.gather(1, leads.int().argmax(dim=1, keepdim=True)).squeeze(1)
        parts.append((winner, of_class, first.gather(1, classes) == place))
    predicted, votes, nearest = (torch.cat(part) for part in zip(*parts, strict=True))
    return predicted, votes, nearest


def retrieval_map(
    train_x: Float[Tensor, "n d"],
    train_y: Int[Tensor, " n"],
    test_x: Float[Tensor, "m d"] | None,
    test_y: Int[Tensor, " m"],
    *,
    metric: Metric = "cosine",
    memory_gib: float = 1.0,
) -> float:
    """Mean average precision of the training images ranked for each test image; those of its class are relevant.

    Args:
        train_x, train_y, test_x, metric: see `knn_classify`; without `test_x` each image ranks the others.
        test_y: class numbers of the test images. One whose class has no other image does not count.
        memory_gib: bound of what is held at once, GiB.

    Raises:
        ValueError: features that are not finite; no test image with a relevant one.

    Reference: the average precision of a full ranking, (1/R) sum of precision at the places of the R relevant ones.
    """
    train, test = prepare(train_x, test_x, metric)
    queries = train if test is None else test
    rows = max(1, int(memory_gib * 2**30 / (_RANKING_BYTES * len(train))))
    place = torch.arange(1, len(train) + (test is not None), device=train.device)
    found: list[Tensor] = []
    for start in range(0, len(queries), rows):
        asked = queries[start : start + rows]
        _, order = search_torch(train, asked, len(train), metric, memory_gib)
        relevant = train_y.to(order.device)[order] == test_y.to(order.device)[start : start + rows, None]
        if test is None:
            others = order != torch.arange(start, start + len(asked), device=order.device)[:, None]
            relevant = relevant[others].view(len(asked), -1)
        precision = relevant.cumsum(dim=1) / place
        many = relevant.sum(dim=1)
        found.append(((precision * relevant).sum(dim=1) / many)[many > 0].cpu().double())
    if not len(each := torch.cat(found)):
        raise ValueError("no test image shares its class with a training image: there is nothing to retrieve")
    return float(each.mean())
