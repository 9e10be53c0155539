"""Neighbour agreement: how similar the feature spaces of student and teacher are, measured without labels."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS = 10


def neighbour_agreement(student: Float[Tensor, "n d"], teacher: Float[Tensor, "n D"], k: int = NEIGHBOURS) -> float:
    """Compute the fraction of nearest neighbours that two nets share, corrected for chance.

    Neighbours are by cosine, the image itself left out; k is at most half of the other images. The shared fraction m is
    corrected for the fraction c = k / (n - 1) that unrelated nets share, to (m - c) / (1 - c).

    Args:
        student: features of n images, 3 or more.
        teacher: features of the same images, in the same order.
        k: number of neighbours.

    Returns:
        1 where every neighbourhood is the same, about 0 for unrelated features.

    Raises:
        ValueError: fewer than 3 images.

    Reference: mutual k-nearest-neighbour metric of Huh et al., "The Platonic Representation Hypothesis", ICML 2024,
    appendix A; the correction for chance is ours.
    """
    n = len(student)
    assert n == len(teacher)
    if n < 3:
        raise ValueError(f"neighbour agreement needs at least 3 images, not {n}: hold out more")
    k = min(k, (n - 1) // 2)
    shared = nearest(student, k) & nearest(teacher, k)
    chance = k / (n - 1)
    return (float(shared.sum()) / (n * k) - chance) / (1 - chance)


def describe_agreement(value: float) -> str:
    """An agreement in words, in percent; below 0.05 % it is no better than chance."""
    if value < 0.0005:
        return "no better than chance"
    return f"{100 * value:.1f} %"


def nearest(features: Float[Tensor, "n d"], k: int) -> Tensor:
    """Mark each row's k nearest neighbours by cosine: (n, n), True where the column is one of them."""
    unit = F.normalize(features.double(), dim=1)
    similarity = unit @ unit.T
    similarity.fill_diagonal_(-2)  # below every cosine
    return torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, similarity.topk(k).indices, True)
