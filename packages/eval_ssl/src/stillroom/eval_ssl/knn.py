"""Exact k-nearest-neighbour classification with cosine similarity."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

_CHUNK_BYTES = 256 * 2**20  # of the similarity matrix held at once


def nearest_neighbours(
    train_x: Float[Tensor, "n d"], test_x: Float[Tensor, "m d"], k: int
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """The k most similar training rows of each test row: cosine similarities and row numbers, nearest first.

    Exact, float32, in chunks of test rows; equal similarities are ordered by row number.

    Raises:
        ValueError: k larger than the training set, or a constant backbone (all training features equal).
    """
    if not 1 <= k <= len(train_x):
        raise ValueError(f"k = {k} does not fit {len(train_x)} training images: choose k from 1 to {len(train_x)}")
    if len(train_x) > 1 and bool((train_x == train_x[0]).all()):
        raise ValueError("the backbone gives the same feature for every training image: there are no neighbours")
    train_x, test_x = normalize(train_x.float(), dim=1), normalize(test_x.float(), dim=1)
    rows = max(1, _CHUNK_BYTES // (4 * len(train_x)))
    parts = []
    for chunk in test_x.split(rows):
        values, indices = (chunk @ train_x.T).topk(k, dim=1)
        parts.append(_order_ties(values, indices))
    return torch.cat([values for values, _ in parts]), torch.cat([indices for _, indices in parts])


def _order_ties(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Sort equal similarities by row number, which topk leaves open."""
    by_row = indices.argsort(dim=1, stable=True)
    values, indices = values.gather(1, by_row), indices.gather(1, by_row)
    by_value = values.argsort(dim=1, descending=True, stable=True)
    return values.gather(1, by_value), indices.gather(1, by_value)


def knn_classify(
    train_x: Float[Tensor, "n d"],
    train_y: Int[Tensor, " n"],
    test_x: Float[Tensor, "m d"],
    k: Sequence[int],
    num_classes: int | None = None,
) -> dict[int, Int[Tensor, " m"]]:
    """Predict each test row's class by a majority vote of its k nearest training rows, for every k in one pass.

    Cosine similarity of L2-normalised features, unweighted votes. Among classes with equally many votes, the one whose
    nearest member is nearest wins.

    Args:
        train_x, train_y: features and class numbers of the training images.
        test_x: features to classify.
        k: numbers of neighbours.
        num_classes: at least the largest class number plus one; None takes just that.

    Returns:
        k -> predicted class numbers.

    Raises:
        ValueError: see `nearest_neighbours`.

    Reference: SimReg (Navaneet et al., BMVC 2021), section 4.1, evaluates with k = 1 and 20 and breaks ties at random.
    """
    classes = int(train_y.max()) + 1 if num_classes is None else num_classes
    _, neighbours = nearest_neighbours(train_x, test_x, max(k))
    voters = train_y.to(neighbours.device)[neighbours]
    return {number: _vote(voters[:, :number], classes) for number in k}


def _vote(voters: Int[Tensor, "m k"], num_classes: int) -> Int[Tensor, " m"]:
    votes = torch.zeros(len(voters), num_classes, dtype=torch.long, device=voters.device)
    votes.scatter_add_(1, voters, torch.ones_like(voters))
    leads = votes.gather(1, voters) == votes.max(dim=1, keepdim=True).values  # neighbours of a leading class
    first = leads.int().argmax(dim=1, keepdim=True)  # the nearest of them
    return voters.gather(1, first).squeeze(1)
