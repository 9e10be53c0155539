"""KDEP's comparisons: every other alignment against independent NumPy, scikit-learn or SciPy, and their refusals."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from sklearn.decomposition import MiniBatchNMF
from torch import Tensor

from stillroom.distill import Moments, build_alignment
from stillroom.distill.alignment import AlignedTarget
from stillroom.distill.factors import LdaAlignment, NmfAlignment
from stillroom.distill.fit import FitPass, build_moments
from stillroom.distill.moments import ClassMoments
from stillroom.distill.slots import (
    Alignment,
    ChannelSelection,
    Interpolation,
    Lda,
    Nmf,
    RandomProjection,
    Raw,
    Svd,
    SvdVarianceMatching,
    SvdWhitening,
)
from stillroom.images.source import from_paths
from stillroom.runs import Run

Array = np.ndarray


@pytest.fixture(scope="module")
def features() -> Tensor:
    """4,000 features of 8 dimensions with different means and spreads."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(4000, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
    return mixed + torch.arange(8) - 4


def fitted(config: Alignment, features: Tensor, dim: int) -> AlignedTarget:
    target = build_alignment(config, features.shape[1], dim)
    moments = Moments(features.shape[1])
    moments.update(features)
    target.alignment.fit(moments)
    return target


def components(features: Tensor) -> tuple[Array, Array]:
    """All components by NumPy's SVD, signs as ours, and the basis."""
    x = features.double().numpy()
    x = x - x.mean(axis=0)
    basis = np.linalg.svd(x, full_matrices=False)[2].T
    basis *= np.sign(basis[np.abs(basis).argmax(axis=0), range(basis.shape[1])])
    return x @ basis, basis


def test_raw_is_the_feature_itself(features: Tensor) -> None:
    assert torch.equal(build_alignment(Raw(), 8, 3)(features), features)


@pytest.mark.parametrize(("which", "columns"), [("largest", [0, 1, 2]), ("middle", [2, 3, 4]), ("smallest", [5, 6, 7])])
def test_svd_keeps_the_requested_components(features: Tensor, which: str, columns: list[int]) -> None:
    ours = fitted(Svd(components=which), features, 3)(features).numpy()
    assert np.abs(ours - components(features)[0][:, columns]).max() < 1e-3


def test_random_components_are_different_ones_in_order_and_the_same_each_time(features: Tensor) -> None:
    ours = fitted(Svd(components="random"), features, 4)(features).numpy()
    distances = np.abs(ours[:, :, None] - components(features)[0][:, None, :]).max(axis=0)
    chosen = distances.argmin(axis=1)
    assert distances.min(axis=1).max() < 1e-3
    assert (np.diff(chosen) > 0).all() and chosen.tolist() != [0, 1, 2, 3]
    assert np.array_equal(ours, fitted(Svd(components="random"), features, 4)(features).numpy())


def test_whitened_components_have_unit_variance_and_no_covariance(features: Tensor) -> None:
    ours = fitted(SvdWhitening(), features, 5)(features).double().numpy()
    assert np.abs(np.cov(ours.T, bias=True) - np.eye(5)).max() < 1e-4
    z = components(features)[0][:, :5]
    assert np.abs(ours - z / z.std(axis=0)).max() < 1e-3


def test_variance_matching_to_a_line_maps_the_spreads_linearly(features: Tensor) -> None:
    ours = fitted(SvdVarianceMatching(), features, 5)(features).double().numpy()
    s = components(features)[0][:, :5].std(axis=0)
    expected = 1.0 + (s - s.min()) / (s.max() - s.min()) * (2.98 - 1.0)
    assert np.abs(ours.std(axis=0) - expected).max() < 1e-4
    assert ours.std(axis=0)[0] == pytest.approx(2.98, rel=1e-4)


def test_variance_matching_to_channels_takes_the_teachers_own_spreads(features: Tensor) -> None:
    ours = fitted(SvdVarianceMatching(to="channels"), features, 5)(features).double().numpy()
    expected = np.sort(features.double().numpy().std(axis=0))[::-1][:5]
    assert np.abs(ours.std(axis=0) - expected).max() < 1e-4


def test_channels_of_largest_variance_magnitude_and_signed_mean_are_chosen(features: Tensor) -> None:
    x = features.double().numpy()
    scores = {"variance": x.var(axis=0), "magnitude": np.abs(x).mean(axis=0), "signed-mean": x.mean(axis=0)}
    assert len({tuple(np.argsort(score)[-3:]) for score in scores.values()}) == 3, "the three choose differently"
    for by, score in scores.items():
        chosen = np.sort(np.argsort(score)[::-1][:3])
        ours = fitted(ChannelSelection(by=by), features, 3)(features).numpy()
        assert np.array_equal(ours, features.numpy()[:, chosen])
    drawn = build_alignment(ChannelSelection(by="random"), 8, 3)
    assert len(set(drawn.alignment.channels_.tolist())) == 3


def test_interpolation_takes_the_nearest_channel_of_even_places(features: Tensor) -> None:
    ours = build_alignment(Interpolation(), 8, 3)(features).numpy()
    assert np.array_equal(ours, features.numpy()[:, [int(i * 8 / 3) for i in range(3)]])
    wide = build_alignment(Interpolation(), 8, 12)(features).numpy()
    assert np.array_equal(wide, features.numpy()[:, [int(i * 8 / 12) for i in range(12)]])


def test_a_random_projection_keeps_lengths_in_the_mean() -> None:
    x = torch.randn(50, 2000, generator=torch.Generator().manual_seed(3))
    target = build_alignment(RandomProjection(), 2000, 500)
    ratio = target(x).norm(dim=1) / x.norm(dim=1)
    assert float(ratio.mean()) == pytest.approx(1, abs=0.02)
    assert torch.allclose(target(x), x @ target.alignment.projection_)
    assert torch.equal(target(x), build_alignment(RandomProjection(), 2000, 500)(x))


def test_nmf_explains_what_scikit_learns_own_transform_explains() -> None:
    rng = np.random.default_rng(0)
    x = (rng.random((2000, 4)) ** 3 @ rng.random((4, 12)) + 0.01 * rng.random((2000, 12))).astype(np.float32)
    nmf = NmfAlignment(12, 4, sweeps=500)
    for start in range(0, 2000, 100):
        nmf.partial_fit(torch.from_numpy(x[start : start + 100]))
    nmf.finish()
    weights, factors = nmf(torch.from_numpy(x)).double().numpy(), nmf.factors_.double().numpy()
    assert (weights >= 0).all() and (factors >= 0).all()
    theirs = MiniBatchNMF(n_components=4, init="nndsvda", random_state=0, max_iter=1000).fit(x.astype(np.float64))
    rival = np.linalg.norm(x - theirs.transform(x.astype(np.float64)) @ theirs.components_)
    assert np.linalg.norm(x - weights @ factors) < 1.1 * rival
    exact = np.array([scipy.optimize.nnls(factors.T, row.astype(np.float64))[0] for row in x[:50]])
    assert np.abs(weights[:50] - exact).max() < 0.02 * exact.max()


def test_nmf_refuses_negative_features_few_images_and_several_processes() -> None:
    with pytest.raises(ValueError, match="NMF needs features that are not negative"):
        NmfAlignment(4, 2).partial_fit(torch.tensor([[1.0, -1.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="1 images cannot determine 2 factors"):
        NmfAlignment(4, 2).partial_fit(torch.ones(1, 4)).finish()
    two = Run(device=torch.device("cpu"), rank=0, world_size=2)
    with pytest.raises(ValueError, match="NMF is fitted in one process"):
        build_moments(build_alignment(Nmf(), 4, 2), FitPass(files=from_paths([]), run=two))


def labelled(classes: int = 5, each: int = 300) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(classes).repeat(each)
    centres = 3 * torch.randn(classes, 6, generator=generator)
    spread = torch.randn(6, 6, generator=generator) + 3 * torch.eye(6)
    return centres[labels] + torch.randn(len(labels), 6, generator=generator) @ spread, labels


def test_lda_solves_the_generalised_eigenproblem_of_its_scatters() -> None:
    x, labels = labelled()
    scatter = ClassMoments(6, 5)
    for rows, classes in zip(x.split(77), labels.split(77), strict=True):
        scatter.update(rows, classes)
    lda = LdaAlignment(6, 3).fit(scatter)
    y, z = x.double().numpy(), labels.numpy()
    means = np.array([y[z == k].mean(axis=0) for k in range(5)])
    within = sum(np.cov(y[z == k].T, bias=True) for k in range(5)) / 5
    between = np.cov(means.T, bias=True)
    within += 1e-4 * np.diag(within).mean() * np.eye(6)
    _, vectors = scipy.linalg.eigh(between, within)
    expected = vectors[:, ::-1][:, :3]
    expected *= np.sign(expected[np.abs(expected).argmax(axis=0), range(3)])
    assert np.abs(lda.basis_.numpy() - expected).max() < 1e-4
    ours = lda(x).double().numpy()
    inside = sum(np.cov(ours[z == k].T, bias=True) for k in range(5)) / 5
    assert np.abs(inside - np.eye(3)).max() < 2e-3  # the ridge


def test_lda_refuses_too_many_discriminants_and_images_without_labels(tmp_path) -> None:
    x, labels = labelled()
    scatter = ClassMoments(6, 5)
    scatter.update(x, labels)
    with pytest.raises(ValueError, match="5 classes have 4 discriminants, fewer than 5"):
        LdaAlignment(6, 5).fit(scatter)
    one = Run(device=torch.device("cpu"))
    with pytest.raises(ValueError, match="LDA needs labels"):
        build_moments(build_alignment(Lda(), 6, 3), FitPass(files=from_paths([]), run=one))


@pytest.mark.parametrize("config", [ChannelSelection(), Nmf(), Lda(), Svd()])
def test_a_target_wider_than_the_feature_is_refused(config: Alignment) -> None:
    with pytest.raises(ValueError, match="the student is 9-d, the teacher's feature only 8-d"):
        build_alignment(config, 8, 9)
