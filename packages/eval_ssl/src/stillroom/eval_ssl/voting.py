"""k-nearest-neighbour classification: the votes of the neighbours, and what the predictions score."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillroom.eval_ssl.config import TEMPERATURE, Backend, Metric, Vote, check_temperature
from stillroom.eval_ssl.neighbours import check_k, nearest_neighbours, prepare, search_torch

_QUERY_ROWS = 1024  # queries whose votes for every class are held at once
_RANKING_BYTES = 40  # per training image and query that ranks it


@dataclass(frozen=True)
class Predictions:
    """The predictions of k-NN for each query.

    Attributes:
        predicted: (m,) the class with most votes.
        rank: (m,) the rank of the true class by votes, from 1; 0 where it has none.
        first_match: (m,) the rank of the nearest neighbour of the true class, from 1; 0 where there is none.
    """

    predicted: Int[Tensor, " m"]
    rank: Int[Tensor, " m"]
    first_match: Int[Tensor, " m"]

    def metrics(self) -> dict[str, float]:
        """Top-1, top-5 and the mean reciprocal rank of the first neighbour of the true class, fractions."""
        return {
            "top1": float((self.rank == 1).double().mean()),
            "top5": float(((self.rank >= 1) & (self.rank <= 5)).double().mean()),
            "mrr": float((self.first_match.double().reciprocal() * (self.first_match > 0)).nan_to_num(0).mean()),
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
    """Predict each query's class by a vote of its k nearest training rows, for every k in one pass.

    Ties go to the class whose nearest member is nearest.

    Args:
        train_x, train_y: features and class numbers of the training images.
        test_x: features to classify; None: the training rows, each by the others (leave-one-out).
        k: numbers of neighbours.
        num_classes: at least the largest class number plus one; None takes just that.
        vote: equal votes, or exp(similarity / temperature), where a similarity is the cosine or the negative squared
            distance.
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
    similarities, indices = nearest_neighbours(
        train_x, test_x, max(k), metric=metric, backend=backend, memory_gib=memory_gib
    )
    neighbour_y = train_y.to(indices.device)[indices]
    weights = vote_weights(similarities, vote, temperature)
    return {number: count_votes(weights[:, :number], neighbour_y[:, :number], num_classes)[0] for number in k}


def predict(
    similarities: Float[Tensor, "m k"],
    neighbour_y: Int[Tensor, "m k"],
    targets: Int[Tensor, " m"],
    k: Sequence[int],
    num_classes: int | None = None,
    *,
    vote: Vote = "majority",
    temperature: float = TEMPERATURE,
    tie_seed: int | None = None,
) -> dict[int, Predictions]:
    """Predict by the first k neighbours, for every k, and rank the true class.

    Args:
        similarities: of the neighbours, nearest first.
        neighbour_y: class numbers of the neighbours.
        targets: class numbers of the queries.
        k, num_classes, vote, temperature: see `knn_classify`.
        tie_seed: break ties at random, by this seed; None: for the class whose nearest member is nearest.
    """
    weights, predictions = vote_weights(similarities, vote, temperature), {}
    ties = None if tie_seed is None else torch.Generator().manual_seed(tie_seed)
    for number in k:
        classes, weight = neighbour_y[:, :number], weights[:, :number]
        first_match = first_position(classes, targets)
        if ties is not None:  # of equal votes the first class wins: with the voters in a random order, any of them
            order = torch.rand(classes.shape, generator=ties).argsort(dim=1).to(classes.device)
            classes, weight = classes.gather(1, order), weight.gather(1, order)
        predicted, votes, nearest = count_votes(weight, classes, num_classes)
        first_vote = first_position(classes, targets)[:, None]
        position = torch.arange(1, number + 1, device=votes.device)
        true_votes = votes.gather(1, (first_vote - 1).clamp(min=0))
        ahead = nearest & ((votes > true_votes) | ((votes == true_votes) & (position < first_vote)))
        rank = torch.where(first_match > 0, ahead.sum(dim=1) + 1, 0)
        predictions[number] = Predictions(predicted.cpu(), rank.cpu(), first_match.cpu())
    return predictions


def first_position(classes: Int[Tensor, "m k"], targets: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
    """The position of each row's first neighbour of the true class, from 1; 0 where there is none."""
    match = classes == targets[:, None]
    return torch.where(match.any(dim=1), match.int().argmax(dim=1) + 1, 0)


def vote_weights(similarities: Float[Tensor, "m k"], vote: Vote, temperature: float) -> Float[Tensor, "m k"]:
    """The weight of each neighbour's vote relative to the nearest one's, so that nothing overflows."""
    check_temperature(temperature)
    if vote == "majority":
        return torch.ones_like(similarities)
    return ((similarities - similarities[:, :1]).double() / temperature).exp()


def count_votes(
    weights: Float[Tensor, "m k"], neighbour_y: Int[Tensor, "m k"], num_classes: int | None = None
) -> tuple[Int[Tensor, " m"], Float[Tensor, "m k"], Bool[Tensor, "m k"]]:
    """Count the votes.

    Returns:
        The class with most votes, where ties go to the class whose nearest member is nearest; the votes of each
        neighbour's class; and whether a neighbour is the nearest one of its class.
    """
    num_classes = int(neighbour_y.max()) + 1 if num_classes is None else num_classes
    k = neighbour_y.shape[1]
    position = torch.arange(k, device=neighbour_y.device)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for weight, classes in zip(weights.split(_QUERY_ROWS), neighbour_y.split(_QUERY_ROWS), strict=True):
        votes = torch.zeros(len(classes), num_classes, dtype=weight.dtype, device=weight.device)
        votes.scatter_add_(1, classes, weight)
        first = torch.full((len(classes), num_classes), k, device=classes.device)
        first.scatter_reduce_(1, classes, position.expand_as(classes), "amin")
        class_votes = votes.gather(1, classes)
        leads = class_votes == class_votes.max(dim=1, keepdim=True).values
        winner = classes.gather(1, leads.int().argmax(dim=1, keepdim=True)).squeeze(1)
        parts.append((winner, class_votes, first.gather(1, classes) == position))
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
    """Mean average precision of ranking the training images for each query; those of its class are relevant.

    Args:
        train_x, train_y, test_x, metric: see `knn_classify`; without `test_x` each image ranks the others.
        test_y: class numbers of the queries. A query whose class has no other image is left out.
        memory_gib: upper bound of what is held at once, GiB.

    Raises:
        ValueError: features that are not finite, or no query with a relevant image.

    Reference: average precision of a full ranking, (1/R) sum of the precision at the ranks of the R relevant images.
    """
    train, test = prepare(train_x, test_x, metric)
    queries = train if test is None else test
    rows = max(1, int(memory_gib * 2**30 / (_RANKING_BYTES * len(train))))
    rank = torch.arange(1, len(train) + (test is not None), device=train.device)
    precisions: list[Tensor] = []
    for start in range(0, len(queries), rows):
        # Rank the training images for some queries.
        block = queries[start : start + rows]
        _, order = search_torch(train, block, len(train), metric, memory_gib)
        relevant = train_y.to(order.device)[order] == test_y.to(order.device)[start : start + rows, None]
        if test is None:
            others = order != torch.arange(start, start + len(block), device=order.device)[:, None]
            relevant = relevant[others].view(len(block), -1)

        # Their average precision.
        precision = relevant.cumsum(dim=1) / rank
        num_relevant = relevant.sum(dim=1)
        average = (precision * relevant).sum(dim=1) / num_relevant
        precisions.append(average[num_relevant > 0].cpu().double())
    if not len(each := torch.cat(precisions)):
        raise ValueError("no test image shares its class with a training image: there is nothing to retrieve")
    return float(each.mean())
