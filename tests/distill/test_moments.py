"""Streaming mean and covariance against NumPy, and their memory."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.distill import Moments
from stillroom.distill.moments import BLOCK_ROWS
from stillroom.runs import Run


def features(count: int, dim: int, seed: int = 0, mean: float = 5.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, dim)) @ generator.standard_normal((dim, dim)) + mean


@settings(deadline=None, max_examples=25)
@given(count=st.integers(2, 1500), batch=st.integers(1, 700), mean=st.sampled_from([0.0, 3.0, 300.0]))
def test_moments_equal_numpy_whatever_the_batch_size(count: int, batch: int, mean: float) -> None:
    data = features(count, 6, mean=mean).astype(np.float32)
    moments = Moments(6)
    for rows in torch.from_numpy(data).split(batch):
        moments.update(rows)
    exact = data.astype(np.float64)
    spread = exact.std(axis=0).max()
    assert moments.count == count
    assert np.abs(moments.mean.numpy() - exact.mean(axis=0)).max() < 1e-6 * (spread + abs(mean))
    assert np.abs(moments.covariance.numpy() - np.cov(exact.T, bias=True)).max() < 2e-6 * spread**2


def test_batches_of_any_size_give_the_same_bits() -> None:
    data = torch.from_numpy(features(1300, 8).astype(np.float32))
    results = []
    for batch in (1, 64, 512, 1300):
        moments = Moments(8)
        for rows in data.split(batch):
            moments.update(rows)
        results.append(moments.covariance)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_components_equal_the_svd_of_the_centred_matrix() -> None:
    # A spectrum with a gap at the cut, so that the subspace is well defined.
    generator = torch.Generator().manual_seed(0)
    dim, kept = 96, 24
    scales = torch.cat([torch.linspace(4, 2, kept), torch.linspace(0.5, 0.1, dim - kept)])
    rotation, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
    data = torch.randn(6000, dim, generator=generator) * scales @ rotation + 7.0
    moments = Moments(dim)
    for rows in data.split(100):
        moments.update(rows)
    vectors = torch.linalg.eigh(moments.covariance).eigenvectors.flip(1)[:, :kept]
    exact = data.double()
    _, _, right = torch.linalg.svd(exact - exact.mean(dim=0), full_matrices=False)
    overlap = torch.linalg.svdvals(right[:kept] @ vectors)
    # the sine of the angle, which is exact where the cosine is nearly 1
    residual = vectors - right[:kept].T @ (right[:kept] @ vectors)
    assert torch.asin(torch.linalg.svdvals(residual).clamp(max=1)).max() < 1e-4
    assert overlap.min() > 1 - 1e-8


def test_parts_of_several_processes_merge_into_the_whole(in_two_processes: Callable[..., list]) -> None:
    data = torch.from_numpy(features(1400, 5).astype(np.float32))
    whole = Moments(5)
    whole.update(data)

    def part() -> tuple[int, torch.Tensor, torch.Tensor]:
        run = Run.start("cpu")
        moments = Moments(5)
        moments.update(data[:900] if run.is_main else data[900:])
        moments.reduce(run)
        run.close()
        return moments.count, moments.mean, moments.covariance

    for count, mean, covariance in in_two_processes(part):
        assert count == 1400
        assert torch.allclose(mean, whole.mean, rtol=1e-6)
        assert torch.allclose(covariance, whole.covariance, rtol=1e-5, atol=1e-6)


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    def held(moments: Moments) -> int:
        return sum(t.numel() * t.element_size() for t in vars(moments).values() if isinstance(t, torch.Tensor))

    small, large = Moments(32), Moments(32)
    small.update(torch.randn(BLOCK_ROWS, 32))
    for _ in range(20):
        large.update(torch.randn(BLOCK_ROWS, 32))
    assert held(small) == held(large) <= 8 * 32 * 32 + 4 * BLOCK_ROWS * 32 + 20 * 32


def test_features_that_are_not_finite_are_refused() -> None:
    rows = torch.zeros(3, 4)
    rows[1, 2] = float("inf")
    with pytest.raises(ValueError, match="features are not finite"):
        Moments(4).update(rows)


def test_no_features_have_no_moments() -> None:
    with pytest.raises(ValueError, match="there is no mean"):
        _ = Moments(4).mean
    with pytest.raises(ValueError, match="there is no covariance"):
        _ = Moments(4).covariance
