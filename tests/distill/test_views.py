"""The views of the two recipes, and who sees which."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import resize

from stillroom.backbone import InputSpec
from stillroom.distill import KdepView, StrongView, WeakView
from stillroom.distill.views import FixedView, Lighting, SameView, View, Views, build_view
from stillroom.images import EvaluationView


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


def render(views: Views, seed: int = 3, size: int = 64) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    return views(picture(size))


@pytest.mark.parametrize("view", [KdepView(), WeakView(), StrongView(blur=0.0)])
def test_both_nets_see_the_same_view_at_their_own_size(view: View) -> None:
    """The small rendering is the large one made small: same crop, same flip, same colours."""
    views = Views(view, SameView(), [16], [InputSpec(size=32)])
    for seed in range(8):
        rendered = render(views, seed)
        small, large = rendered[views.of_students[0]], rendered[views.of_teachers[0]]
        assert (small.shape, large.shape) == ((3, 16, 16), (3, 32, 32))
        shrunk = resize(large, [16, 16], antialias=True).float()
        assert (small.float() - shrunk).abs().mean() < 6  # of 255; another draw is 30 and more away
        other = render(views, seed + 100)[views.of_students[0]]
        assert (small.float() - other.float()).abs().mean() > 6


def test_the_students_view_does_not_depend_on_who_else_looks() -> None:
    alone = Views(WeakView(), SameView(), [16], [])
    with_teacher = Views(WeakView(), SameView(), [16], [InputSpec(size=32)])
    independent = Views(WeakView(), StrongView(), [20, 16], [InputSpec(size=32)])
    expected = render(alone)[alone.of_students[0]]
    assert torch.equal(render(with_teacher)[with_teacher.of_students[0]], expected)
    assert torch.equal(render(independent)[independent.of_students[1]], expected)


def test_an_independent_view_is_another_draw_even_at_the_same_size() -> None:
    views = Views(WeakView(), WeakView(), [32], [InputSpec(size=32)])
    rendered = render(views)
    assert len(rendered) == 2 and not torch.equal(*rendered)
    same = Views(WeakView(), SameView(), [32, 32], [InputSpec(size=32)])
    assert len(render(same)) == 1 and same.of_teachers == [0]


def test_a_fixed_view_is_the_evaluation_view() -> None:
    spec = InputSpec(size=24, crop_fraction=0.75)
    views = Views(StrongView(), FixedView(), [16], [spec])
    for seed in range(3):
        assert torch.equal(render(views, seed)[views.of_teachers[0]], EvaluationView(spec)(picture()))


def test_the_strong_view_is_simregs() -> None:
    """RandomResizedCrop(.2-1), flip, jitter (.4, .4, .4, .1) p .8, grayscale p .2, blur of 0.1 to 2 px at 224 p .5."""
    crop, flip, jitter, gray, blur = list(build_view(StrongView(), 224).transforms)[1:]
    assert crop.scale == (0.2, 1.0) and flip.p == 0.5 and gray.p == 0.2
    assert (jitter.p, blur.p) == (0.8, 0.5)
    assert jitter.transforms[0].brightness == (0.6, 1.4) and jitter.transforms[0].hue == (-0.1, 0.1)
    assert list(blur.transforms[0].sigma) == [0.1, 2.0] and blur.transforms[0].kernel_size == (13, 13)
    small = build_view(StrongView(), 112).transforms[-1].transforms[0]
    assert list(small.sigma) == [0.05, 1.0]
    assert build_view(WeakView(), 224).transforms[1].scale == (0.2, 1.0)


@pytest.mark.parametrize("view", [KdepView(), WeakView(), StrongView()])
@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (1, 1)])
def test_a_thin_image_is_cropped_before_it_grows(view: View, size: tuple[int, int]) -> None:
    for rendered in Views(view, FixedView(), [32], [InputSpec(size=48)])(Image.new("RGB", size, "teal")):
        assert rendered.shape[1] == rendered.shape[2] and rendered.shape[1] in (32, 48)
