"""The label-free figure: shared nearest neighbours, corrected for chance."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from stillroom.distill.agreement import neighbour_agreement


def test_it_is_one_for_features_that_are_turned_and_scaled() -> None:
    torch.manual_seed(0)
    features = torch.randn(60, 12)
    turned = 3 * features @ torch.linalg.qr(torch.randn(12, 12))[0]
    assert neighbour_agreement(turned, features) == pytest.approx(1)


def test_it_is_zero_on_average_for_unrelated_features() -> None:
    torch.manual_seed(1)
    drawn = [neighbour_agreement(torch.randn(80, 16), torch.randn(80, 16)) for _ in range(40)]
    assert abs(np.mean(drawn)) < 0.01


def test_it_equals_an_independent_count_of_shared_neighbours() -> None:
    torch.manual_seed(2)
    teacher = torch.randn(50, 8)
    student = teacher @ torch.randn(8, 5) + 0.5 * torch.randn(50, 5)

    def neighbours(features: torch.Tensor) -> list[set[int]]:
        search = NearestNeighbors(n_neighbors=11, metric="cosine").fit(features.numpy())
        return [set(row[1:]) for row in search.kneighbors(return_distance=True, X=features.numpy())[1].tolist()]

    pairs = zip(neighbours(student), neighbours(teacher), strict=True)
    shared = np.mean([len(a & b) / 10 for a, b in pairs])
    chance = 10 / 49
    assert neighbour_agreement(student, teacher) == pytest.approx((shared - chance) / (1 - chance))


def test_of_few_images_it_takes_fewer_neighbours() -> None:
    features = torch.randn(8, 4, generator=torch.Generator().manual_seed(3))
    assert neighbour_agreement(features, features) == pytest.approx(1)
    mirrored = features.flip(0)
    assert neighbour_agreement(features, mirrored) < 0.5
