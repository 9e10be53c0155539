"""Figures, checked by their pixels."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch.nn.functional import normalize

from stillroom.eval_ssl.figures import draw_neighbours, draw_shots, embed, sample_queries

GREEN, RED = (42, 143, 74), (200, 50, 43)


def test_frames_of_the_sheet_show_what_was_correct(labelled: Callable[..., Path], tmp_path: Path) -> None:
    folder = labelled("train", per_class=3, classes=("blue", "red"))
    blue, red = (sorted((folder / name).glob("*.png")) for name in ("blue", "red"))
    draw_neighbours(
        tmp_path / "sheet.png",
        [blue[0], red[0]],
        [blue[1:], [red[1], blue[0]]],
        [[True, True], [True, False]],
        [True, False],
    )
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert pixels.shape == (2 * 80, 3 * 80 + 8, 3)
    lefts = (0, 88, 168)
    frames = [[tuple(pixels[row * 80 + 1, left + 30].tolist()) for left in lefts] for row in (0, 1)]
    assert frames == [[GREEN, GREEN, GREEN], [RED, GREEN, RED]]
    inside = pixels[30, 30].astype(int)
    assert inside[2] > inside[0]  # the picture itself: blue


def test_half_of_the_sampled_queries_are_incorrect_where_there_are_enough() -> None:
    right = torch.ones(100, dtype=torch.bool)
    right[::10] = False
    chosen = sample_queries(right, seed=0, num_queries=8)
    assert right[chosen].tolist() == [False] * 4 + [True] * 4 and len(set(chosen)) == 8
    assert chosen == sample_queries(right, seed=0, num_queries=8) != sample_queries(right, seed=1, num_queries=8)
    right[:] = True
    right[3] = False
    assert (
        len(sample_queries(right, seed=0, num_queries=8)) == 8 and sample_queries(right, seed=0, num_queries=8)[0] == 3
    )
    assert len(sample_queries(torch.tensor([True, False]), seed=0)) == 2
    assert right[sample_queries(~right, seed=0, num_queries=8)].tolist() == [True] * 7 + [False]


def test_the_plane_is_that_of_scikit_learns_pca() -> None:
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 9)
    expected = PCA(n_components=2, svd_solver="full").fit_transform(normalize(features, dim=1).double().numpy())
    plane = embed(features, "pca")
    np.testing.assert_allclose(np.abs(plane), np.abs(expected), atol=1e-5)


@pytest.mark.slow  # umap-learn compiles when it is imported: 15 s
def test_umap_keeps_clouds_apart() -> None:
    pytest.importorskip("umap")
    generator = torch.Generator().manual_seed(0)
    clouds = torch.randn(2, 1, 16, generator=generator) * 5 + torch.randn(2, 40, 16, generator=generator)
    plane = embed(clouds.flatten(0, 1), "umap")
    centres = plane.reshape(2, 40, 2).mean(axis=1)
    spread = plane.reshape(2, 40, 2).std(axis=1).mean()
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread


def test_umap_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(
        ValueError, match=r"--embedding umap needs umap-learn: pip install 'stillroom-eval-ssl\[umap\]'"
    ):
        embed(torch.randn(5, 3), "umap")


def test_shots_are_a_line_per_checkpoint(tmp_path: Path) -> None:
    one = {1: (20.0, 2.0), 4: (40.0, 1.0)}
    draw_shots(tmp_path / "one.png", {"a": one}, "few-shot")
    draw_shots(tmp_path / "two.png", {"a": one, "b": {1: (30.0, 2.0), 4: (60.0, 1.0)}}, "few-shot")
    colours = [
        len(np.unique(np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).reshape(-1, 3), axis=0))
        for name in ("one", "two")
    ]
    assert colours[1] > colours[0] > 2
