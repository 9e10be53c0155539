"""The view of KDEP's recipe."""

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.distill import KdepView
from stillroom.distill.views import Lighting, build_view


def picture(size: int = 64) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


def test_a_view_is_decided_by_torchs_seed() -> None:
    transform = build_view(KdepView(), 32)
    views = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        views.append(transform(picture()))
    assert views[0].shape == (3, 32, 32) and views[0].dtype == torch.uint8
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_the_smallest_crop_is_respected() -> None:
    """A crop of the whole image, without jitter, is the image or its mirror."""
    transform = build_view(KdepView(min_scale=1.0, jitter=0.0, lighting=0.0), 64)
    square = torch.from_numpy(np.asarray(picture()).copy()).permute(2, 0, 1)
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        view = transform(picture())
        if torch.equal(view, square):
            seen.add("plain")
        elif torch.equal(view, square.flip(2)):
            seen.add("mirrored")
    assert seen == {"plain", "mirrored"}


def test_lighting_moves_every_pixel_by_one_colour_along_the_components() -> None:
    grey = torch.full((3, 4, 4), 128, dtype=torch.uint8)
    lighting = Lighting(0.05)
    torch.manual_seed(1)
    shifted = lighting(grey).double() - 128
    assert (shifted == shifted[:, :1, :1]).all()
    torch.manual_seed(1)
    alpha = (torch.randn(3) * 0.05).double().numpy()
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = 255 * vectors @ (np.array([0.2175, 0.0188, 0.0045]) * alpha)
    assert np.abs(shifted[:, 0, 0].numpy() - expected).max() <= 0.5 + 1e-4  # rounded to whole levels


def test_lighting_has_the_published_spread() -> None:
    grey = torch.full((3, 1, 1), 128, dtype=torch.uint8)
    lighting = Lighting(0.05)
    torch.manual_seed(0)
    reds = torch.stack([lighting(grey)[0, 0, 0].double() for _ in range(3000)])
    expected = 255 * 0.05 * np.sqrt((0.5675 * 0.2175) ** 2 + (0.7192 * 0.0188) ** 2 + (0.4009 * 0.0045) ** 2)
    assert float(reds.std()) == pytest.approx(np.sqrt(expected**2 + 1 / 12), rel=0.06)
