"""Colours of views: torchvision's arithmetic, on one image and on a batch."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from stillroom.images.colour import Colour, apply_colours, draw_lighting


def noise(count: int, size: int = 20) -> Tensor:
    """Images with dark, bright and grey parts, and pixels of equal channels, whose hue is not defined."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8))
    images[:, :, :4] //= 8
    images[:, :, 4:8] = 255 - images[:, :, 4:8] // 8
    images[:, :, 8:10] = images[:, :1, 8:10]
    return images


def levels(image: Tensor) -> Tensor:
    return (image * 255).round()


def apply(images: Tensor, **drawn: object) -> Tensor:
    return apply_colours(images, [Colour(**drawn)] * len(images)).float()


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4, 3.0])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_jitter_is_torchvisions(number: int, factor: float) -> None:
    change = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)[number]
    jitter = [1.0, 1.0, 1.0, 0.0]
    jitter[number] = factor
    images = noise(2)
    expected = torch.stack([levels(change(image / 255, factor)) for image in images])
    difference = (apply(images, jitter=tuple(jitter)) - expected).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01  # of halves, rounded to either side


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.02, 0.1, 0.5])
def test_hue_is_torchvisions(shift: float) -> None:
    images = noise(2)
    expected = levels(TF.adjust_hue(images / 255, shift))
    difference = (apply(images, jitter=(1.0, 1.0, 1.0, shift)) - expected).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("std", [0.1, 0.7, 2.0])
def test_blur_is_torchvisions(std: float) -> None:
    """But for the ends of the kernel, beyond three standard deviations: less than a level of 255."""
    images = noise(2, 40)
    difference = (apply(images, blur=std / 40) - levels(TF.gaussian_blur(images / 255, 13, [std, std]))).abs()
    assert difference.max() <= 1


def test_grey_is_torchvisions() -> None:
    images = noise(2)
    expected = levels(TF.rgb_to_grayscale(images / 255, 3))
    assert (apply(images, grey=True) - expected).abs().max() <= 1


def test_the_order_is_the_drawn_one() -> None:
    images, jitter = noise(1), (1.4, 0.6, 1.4, 0.1)
    changes = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    results = []
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)):
        expected = images / 255
        for number in order:
            expected = changes[number](expected, jitter[number])
        results.append(apply(images, order=order, jitter=jitter))
        assert (results[-1] - levels(expected)).abs().max() <= 1
    assert not torch.equal(results[0], results[1])


def test_each_image_of_a_batch_gets_its_own_colours() -> None:
    generator = np.random.default_rng(0)
    jitters = [(*row[:3].tolist(), (row[3] - 1.0) / 4) for row in generator.uniform(0.6, 1.4, (16, 4))]
    colours = [
        Colour(
            order=tuple(generator.permutation(4).tolist()),
            jitter=jitters[kind] if kind % 2 else (1.0, 1.0, 1.0, 0.0),
            grey=kind % 5 == 0,
            blur=generator.uniform(0.01, 0.1) if kind % 3 == 0 else 0.0,
            lighting=tuple(generator.uniform(-20, 20, 3).tolist()) if kind % 4 == 0 else (0.0, 0.0, 0.0),
        )
        for kind in range(16)
    ]
    images = noise(16)
    batch = apply_colours(images, [Colour.unpack(colour.pack().tolist()) for colour in colours])
    alone = torch.cat([apply_colours(image[None], [colour]) for image, colour in zip(images, colours, strict=True)])
    difference = (batch.int() - alone.int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.001


def test_images_without_colours_stay_and_those_given_are_never_changed() -> None:
    images = noise(2)
    before = images.clone()
    assert torch.equal(apply_colours(images, [Colour(), Colour(order=(3, 2, 1, 0))]), images)
    apply_colours(images, [Colour(grey=True), Colour()])
    assert torch.equal(images, before)


def test_lighting_moves_every_pixel_by_one_colour_along_the_components() -> None:
    drawn = draw_lighting(0.05, torch.Generator().manual_seed(1))
    alpha = (torch.randn(3, generator=torch.Generator().manual_seed(1)) * 0.05).double().numpy()
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    np.testing.assert_allclose(drawn, 255 * vectors @ (np.array([0.2175, 0.0188, 0.0045]) * alpha), atol=1e-4)
    shifted = apply(torch.full((1, 3, 4, 4), 128, dtype=torch.uint8), lighting=drawn) - 128
    assert (shifted == shifted[:, :, :1, :1]).all()
    assert (shifted[0, :, 0, 0] - torch.tensor(drawn)).abs().max() <= 0.5


def test_lighting_has_the_published_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    reds = torch.tensor([draw_lighting(0.05, generator)[0] for _ in range(3000)])
    expected = 255 * 0.05 * np.sqrt((0.5675 * 0.2175) ** 2 + (0.7192 * 0.0188) ** 2 + (0.4009 * 0.0045) ** 2)
    assert float(reds.std()) == pytest.approx(expected, rel=0.06)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_pixels_of_the_cpu_and_nothing_waits_for_it() -> None:
    colours = [
        Colour(
            order=(kind % 4, *(k for k in range(4) if k != kind % 4)),
            jitter=(1.2, 0.8, 1.3, 0.05),
            blur=0.02 * (kind % 2),
        )
        for kind in range(8)
    ]
    images = noise(8)
    device = images.pin_memory().to("cuda", non_blocking=True)
    apply_colours(device, colours)  # the first call makes its memory
    torch.cuda.set_sync_debug_mode("error")
    try:
        applied = apply_colours(device, colours)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    difference = (applied.cpu().int() - apply_colours(images, colours).int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01
