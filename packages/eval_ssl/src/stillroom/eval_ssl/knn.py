"""Exact k-nearest-neighbour classification with cosine similarity."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

_CHUNK_BYTES = 256 * 2**20  # of the similarity matrix held at once


def check_k(k: Sequence[int], num_images: int) -> None:
    """Refuse numbers of neighbours that `num_images` training images cannot give.

    Raises:
        ValueError: no number at all, one below 1, or one above `num_images`.
    """
    if not k:
        raise ValueError("--k is empty: give at least one number of neighbours")
    for number in k:
        if not 1 <= number <= num_images:
            raise ValueError(f"k = {number} does not fit {num_images} training images: choose k from 1 to {num_images}")


def nearest_neighbours(
    train_x: Float[Tensor, "n d"], test_x: Float[Tensor, "m d"], k: int
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """The k most similar training rows of each test row: cosine similarities and row numbers, nearest first.

    Exact, float32, in chunks of test rows; equal similarities are ordered by row number.

    Raises:
        ValueError: k that does not fit, or a constant backbone (all training features equal).
    """
    check_k([k], len(train_x))
    if len(train_x) > 1 and bool((train_x == train_x[0]).all()):
        raise ValueError("the backbone gives the same feature for every training image: there are no neighbours")
    train_x, test_x = normalize(train_x.float(), dim=1), normalize(test_x.float(), dim=1)
    rows = max(1, _CHUNK_BYTES // (4 * len(train_x)))
    parts = []
    for chunk in test_x.split(rows):
        parts.append(_largest(chunk @ train_x.T, k))
    return torch.cat([values for values, _ in parts]), torch.cat([indices for _, indices in parts])


def _largest(similarities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Each row's k largest numbers, equal ones by position; topk leaves open which it takes and in what order."""
    values, indices = similarities.topk(k, dim=1)
    by_position = indices.argsort(dim=1)
    values, indices = values.gather(1, by_position), indices.gather(1, by_position)
    by_value = values.argsort(dim=1, descending=True, stable=True)
    values, indices = values.gather(1, by_value), indices.gather(1, by_value)
    last = values[:, -1:]
    cut = (similarities == last).sum(dim=1) > (values == last).sum(dim=1)  # equal ones stand on both sides of the k-th
    if cut.any():  # rare: duplicate images, dead features
        sort = similarities[cut].sort(dim=1, descending=True, stable=True)
        values[cut], indices[cut] = sort.values[:, :k], sort.indices[:, :k]
    return values, indices


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
        ValueError: see `check_k` and `nearest_neighbours`.

    Reference: SimReg (Navaneet et al., BMVC 2021), section 4.1, evaluates with k = 1 and 20 and breaks ties at random.
    """
    check_k(k, len(train_x))
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
