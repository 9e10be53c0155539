"""The views of the two recipes, and who sees which."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import resize

from stillroom.backbone import InputSpec
from stillroom.distill import KdepView, StrongView, WeakView
from stillroom.distill.views import FixedView, SameView, View, Views, draw_view
from stillroom.images import EvaluationView
from stillroom.images.colour import Colour, apply_colours
from stillroom.images.picture import Picture


def picture(size: int = 64) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alone(view: View, size: int, image: Image.Image, seed: int) -> torch.Tensor:
    """The one rendering of a view."""
    return Views(view, SameView(), [size], [])(image, seeded(seed)).pixels[0]


def of_torchvision(view: View, size: int) -> v2.Compose:
    """The published transforms of a view, but KDEP's lighting."""
    crop = [v2.PILToTensor(), v2.RandomResizedCrop(size, scale=(view.min_scale, 1.0)), v2.RandomHorizontalFlip()]
    match view:
        case KdepView():
            colour = [v2.ColorJitter(view.jitter, view.jitter, view.jitter)]
        case WeakView():
            colour = []
        case StrongView():
            width = size / 224
            kernel = 2 * max(1, round(6 * width)) + 1
            colour = [
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], view.jitter),
                v2.RandomGrayscale(view.grayscale),
                v2.RandomApply([v2.GaussianBlur(kernel, (0.1 * width, 2.0 * width))], view.blur),
            ]
    to_float = v2.ToDtype(torch.float32, scale=True)  # colours of bytes are cut to whole levels at every step
    return v2.Compose([*crop, to_float, *colour])


@pytest.mark.parametrize("size", [24, 112])
@pytest.mark.parametrize(
    ("view", "tolerance"),
    [(WeakView(), 0), (KdepView(lighting=0.0), 1), (KdepView(jitter=0.5, lighting=0.0), 1), (StrongView(), 2)],
)
def test_a_seed_gives_the_view_that_it_gives_torchvisions_transforms(view: View, tolerance: int, size: int) -> None:
    """Geometry to the bit; colours within a level, with hue and blur within two, and those of few pixels."""
    theirs, image = of_torchvision(view, size), picture(160)
    for seed in range(24):
        torch.manual_seed(seed)
        levels = (theirs(image) * 255).round()
        difference = (alone(view, size, image, seed).float() - levels).abs()
        assert difference.max() <= tolerance and (difference > 1).float().mean() < 0.001


def test_the_numbers_of_each_view_are_those_of_its_paper() -> None:
    drawn = {name: [] for name in ("kdep", "strong")}
    for seed in range(400):
        drawn["kdep"].append(draw_view(KdepView(), (500, 375), seeded(seed))[1])
        drawn["strong"].append(draw_view(StrongView(), (500, 375), seeded(seed))[1])
    kdep = torch.tensor([colour.jitter for colour in drawn["kdep"]])
    assert (kdep[:, :3] - 1).abs().max() <= 0.1 and (kdep[:, :3] - 1).abs().max() > 0.095 and (kdep[:, 3] == 0).all()
    jittered = [colour for colour in drawn["strong"] if colour.jitter[0] != 1]
    factors = torch.tensor([colour.jitter for colour in jittered])
    assert (factors[:, :3] - 1).abs().max() <= 0.4 and 0.09 < factors[:, 3].abs().max() <= 0.1
    assert len(jittered) / 400 == pytest.approx(0.8, abs=0.06)
    assert sum(colour.grey for colour in drawn["strong"]) / 400 == pytest.approx(0.2, abs=0.06)
    blurs = [224 * colour.blur for colour in drawn["strong"] if colour.blur]
    assert len(blurs) / 400 == pytest.approx(0.5, abs=0.08) and 0.1 <= min(blurs) < 0.2 < 1.9 < max(blurs) <= 2.0
    assert len({colour.order for colour in jittered}) == 24
    assert draw_view(WeakView(), (500, 375), seeded(0))[1] is None


def test_a_view_is_decided_by_its_generator() -> None:
    views = [alone(KdepView(), 32, picture(), seed) for seed in (3, 3, 4)]
    assert views[0].shape == (3, 32, 32) and views[0].dtype == torch.uint8
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_the_smallest_crop_is_respected() -> None:
    """A crop of the whole image, without jitter, is the image or its mirror."""
    view = KdepView(min_scale=1.0, jitter=0.0, lighting=0.0)
    square = torch.from_numpy(np.asarray(picture()).copy()).permute(2, 0, 1)
    seen = set()
    for seed in range(40):
        rendered = alone(view, 64, picture(), seed)
        if torch.equal(rendered, square):
            seen.add("plain")
        elif torch.equal(rendered, square.flip(2)):
            seen.add("mirrored")
    assert seen == {"plain", "mirrored"}


def test_colours_may_be_applied_later_to_the_batch() -> None:
    """Every image within one level, and all but one pixel in a thousand equal."""
    for view in (KdepView(), StrongView()):
        here, later = (Views(view, SameView(), [48], [], colours=where) for where in ("here", "later"))
        rendered = [later(picture(), seeded(seed)) for seed in range(24)]
        assert all(one.colours[0] is not None for one in rendered)
        colours = [Colour.unpack(one.colours[0].tolist()) for one in rendered]
        batch = apply_colours(torch.stack([one.pixels[0] for one in rendered]), colours)
        expected = torch.stack([here(picture(), seeded(seed)).pixels[0] for seed in range(24)])
        difference = (batch.int() - expected.int()).abs()
        assert difference.max() <= 1 and (difference > 0).float().mean() < 0.001
        assert not torch.equal(batch, torch.stack([one.pixels[0] for one in rendered]))


def test_an_image_is_decoded_once_for_all_nets() -> None:
    decoded = []

    def decode(reduce: int) -> np.ndarray:
        decoded.append(reduce)
        return np.array(picture(96))

    views = Views(StrongView(), WeakView(), [16, 32], [InputSpec(size=32), InputSpec(size=48)])
    rendered = views(Picture((96, 96), decode), seeded(0))
    assert len(rendered.pixels) == 4 and decoded == [1]


def render(views: Views, seed: int = 3, size: int = 64) -> tuple[torch.Tensor, ...]:
    return views(picture(size), seeded(seed)).pixels


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
    without = Views(WeakView(), SameView(), [16], [])
    with_teacher = Views(WeakView(), SameView(), [16], [InputSpec(size=32)])
    independent = Views(WeakView(), StrongView(), [20, 16], [InputSpec(size=32)])
    expected = render(without)[without.of_students[0]]
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


@pytest.mark.parametrize("view", [KdepView(), WeakView(), StrongView()])
@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (1, 1)])
def test_a_thin_image_is_cropped_before_it_grows(view: View, size: tuple[int, int]) -> None:
    views = Views(view, FixedView(), [32], [InputSpec(size=48)])
    for rendered in views(Image.new("RGB", size, "teal"), seeded(0)).pixels:
        assert rendered.shape[1] == rendered.shape[2] and rendered.shape[1] in (32, 48)
