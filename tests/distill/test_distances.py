"""Distances against plain NumPy in float64."""

import numpy as np
import pytest
import torch

from stillroom.distill.distances import dense_distance, distance
from stillroom.distill.slots import CosineDistance, Distance, KlDivergence, Mse

Array = np.ndarray


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def kl(p: Array, t: Array) -> float:
    q, r = softmax(t / 4), softmax(p / 4)
    return float(16 * (q * (np.log(q) - np.log(r))).sum(axis=1).mean())


REFERENCES = [
    (Mse(), lambda p, t: float(((p - t) ** 2).mean())),
    (CosineDistance(), lambda p, t: float(((unit(p) - unit(t)) ** 2).sum(axis=1).mean())),
    (KlDivergence(), kl),
]


@pytest.mark.parametrize(("config", "reference"), REFERENCES)
def test_a_distance_equals_its_numpy_reference(config: Distance, reference) -> None:
    p, t = torch.randn(2, 40, 7, generator=torch.Generator().manual_seed(0)) * 3
    expected = reference(p.double().numpy(), t.double().numpy())
    assert float(distance(config, p, t)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("config", [Mse(), CosineDistance(), KlDivergence()])
def test_nothing_is_nearer_than_the_target_itself(config: Distance) -> None:
    t = torch.randn(16, 5)
    assert float(distance(config, t, t)) == pytest.approx(0, abs=1e-6)
    assert float(distance(config, t + torch.randn(16, 5), t)) > 1e-3


def test_cosine_does_not_see_length_and_mse_does() -> None:
    p, t = torch.randn(2, 8, 4)
    cosine = float(distance(CosineDistance(), p, t))
    assert float(distance(CosineDistance(), 5 * p, t)) == pytest.approx(cosine, rel=1e-5)
    assert float(distance(Mse(), 5 * p, t)) != pytest.approx(float(distance(Mse(), p, t)), rel=0.1)


def test_a_distance_is_computed_in_float32_whatever_comes() -> None:
    p, t = torch.randn(2, 8, 4).bfloat16()
    assert distance(Mse(), p, t).dtype == torch.float32


def test_maps_of_different_grids_meet_on_the_coarser_one() -> None:
    coarse = torch.randn(2, 3, 4, 4)
    fine = coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert float(dense_distance(fine, coarse)) == pytest.approx(0, abs=1e-6)
    assert float(dense_distance(coarse, fine)) == pytest.approx(0, abs=1e-6)
    a, b = torch.randn(2, 2, 3, 5, 5).double().numpy()
    places = [(a[i, :, y, x], b[i, :, y, x]) for i in range(2) for y in range(5) for x in range(5)]
    cosines = [u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in places]
    ours = dense_distance(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    assert float(ours) == pytest.approx(2 - 2 * np.mean(cosines), rel=1e-6)
