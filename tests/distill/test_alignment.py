"""SVD, PTS and the common scale against independent NumPy, and their refusals."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from stillroom.backbone import build_backbone
from stillroom.distill import AlignedTarget, Moments, PowerTemperatureScaling, SvdAlignment, SvdPts, build_alignment
from stillroom.distill.alignment import fix_signs


def moments_of(data: torch.Tensor) -> Moments:
    moments = Moments(data.shape[1])
    moments.update(data)
    return moments


def svd_pts(data: torch.Tensor, dim: int, *, zero_fill: bool = False) -> AlignedTarget:
    target = build_alignment(SvdPts(zero_fill=zero_fill), data.shape[1], dim)
    target.alignment.fit(moments_of(data))
    return target


def gaussian(count: int, stds: list[float], seed: int = 0) -> torch.Tensor:
    return torch.randn(count, len(stds), generator=torch.Generator().manual_seed(seed)) * torch.tensor(stds) + 2.0


def test_target_equals_a_numpy_reference() -> None:
    data = gaussian(3000, [5.0, 3.0, 1.0, 0.5, 0.2])
    target = svd_pts(data, 3)
    target.calibrate(data)
    exact = data.numpy().astype(np.float64)
    mean = exact.mean(axis=0)
    right = np.linalg.svd(exact - mean, full_matrices=False)[2][:3].T
    right *= np.sign(right[np.abs(right).argmax(axis=0), range(3)])
    components = (exact - mean) @ right
    scaled = np.sign(components) * (np.abs(components) / 0.1) ** (1 / 3)
    expected = scaled / np.sqrt((scaled**2).mean())
    ours = target(data).numpy()
    # near 0 the cube root is infinitely steep: there a 1e-7 error of the component is 5e-3 of the target
    steady = np.abs(components) > 1e-2
    assert np.abs(ours - expected)[steady].max() < 1e-4
    assert np.square(target(data).numpy()).mean() == pytest.approx(1, abs=1e-5)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40),
    st.floats(0.01, 10),
    st.sampled_from([1.0, 2.0, 3.0, 7.0]),
)
def test_pts_equals_numpy_for_equal_inputs(values: list[float], temperature: float, exponent: float) -> None:
    z = torch.tensor([values])
    ours = PowerTemperatureScaling(temperature, exponent)(z).double().numpy()
    exact = z.double().numpy()
    expected = np.sign(exact) * (np.abs(exact) / temperature) ** (1 / exponent)
    assert np.all(np.abs(ours - expected) <= 1e-6 * np.maximum(1, np.abs(expected)))


@given(st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32))
def test_pts_is_odd_and_monotone(a: float, b: float) -> None:
    pts = PowerTemperatureScaling()
    low, high = sorted((a, b))
    pair = pts(torch.tensor([[low, high]]))
    assert pair[0, 0] <= pair[0, 1]
    assert torch.equal(pts(torch.tensor([[-a]])), -pts(torch.tensor([[a]])))


@pytest.mark.parametrize("ratio", [2.0, 10.0, 100.0])
def test_pts_turns_a_std_ratio_into_its_cube_root(ratio: float) -> None:
    data = torch.randn(400_000, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([ratio, 1.0])
    scaled = PowerTemperatureScaling()(data).std(dim=0)
    assert float(scaled[0] / scaled[1]) == pytest.approx(ratio ** (1 / 3), rel=0.02)


def test_the_std_ratio_of_a_target_is_measured_before_and_after() -> None:
    data = gaussian(100_000, [27.0, 8.0, 1.0])
    target = svd_pts(data, 3)
    before, after = target.calibrate(data).std_ratio_
    assert before == pytest.approx(27, rel=0.02)
    assert after == pytest.approx(3, rel=0.02)


def test_components_are_ordered_centred_and_signed() -> None:
    data = gaussian(5000, [1.0, 4.0, 2.0])
    svd = SvdAlignment(3, 3).fit(moments_of(data))
    aligned = svd(data)
    assert aligned.mean(dim=0).abs().max() < 1e-4
    assert torch.allclose(aligned.var(dim=0, unbiased=False), svd.variance_, rtol=1e-4)
    assert (svd.variance_.diff() < 0).all()
    assert torch.equal(svd.basis_, fix_signs(-svd.basis_))
    assert (svd.basis_.gather(0, svd.basis_.abs().argmax(dim=0)[None]) > 0).all()


def deficient(count: int = 2000) -> torch.Tensor:
    """Rank 3 of 6."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 3, generator=generator) @ torch.randn(3, 6, generator=generator) + 1.0


def test_the_numerical_rank_is_found() -> None:
    assert int(SvdAlignment(6, 2).fit(moments_of(deficient())).rank_) == 3


def test_more_components_than_the_rank_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rank 3 of 6, fewer than 5 components: .*--alignment\.zero-fill"):
        SvdAlignment(6, 5).fit(moments_of(deficient()))


def test_zero_fill_gives_exact_zeros_beyond_the_rank_and_does_not_count_them_in_the_scale() -> None:
    data = deficient()
    target = svd_pts(data, 5, zero_fill=True)
    target.calibrate(data)
    out = target(data)
    assert out.shape == (2000, 5)
    assert torch.equal(out[:, 3:], torch.zeros(2000, 2))
    assert float(out[:, :3].square().mean()) == pytest.approx(1, abs=1e-4)


def test_a_student_wider_than_the_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="the student is 7-d, the teacher's feature only 6-d"):
        SvdAlignment(6, 7).fit(moments_of(deficient()))


def test_images_that_are_no_more_than_the_components_are_refused() -> None:
    with pytest.raises(ValueError, match="2 images cannot determine 2 components"):
        SvdAlignment(6, 2).fit(moments_of(deficient(2)))


def test_fewer_images_than_dimensions_determine_the_components_that_they_span() -> None:
    data = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    fitted = SvdAlignment(6, 2).fit(moments_of(data))
    assert int(fitted.rank_) == 4  # five points about their mean
    rows = np.linalg.svd((data - data.mean(dim=0)).double().numpy(), full_matrices=False)[2]
    np.testing.assert_allclose(np.abs(rows[:2] @ fitted.basis_.double().numpy()), np.eye(2), atol=1e-5)


@pytest.mark.parametrize(("temperature", "exponent"), [(0.0, 3.0), (-1.0, 3.0), (0.1, 0.5)])
def test_pts_refuses_settings_without_meaning(temperature: float, exponent: float) -> None:
    with pytest.raises(ValueError, match="PTS needs temperature > 0 and exponent >= 1"):
        PowerTemperatureScaling(temperature, exponent)


@pytest.mark.slow
def test_the_real_mobilenet_v2_before_its_last_relu6_has_rank_320(shared_data: Path) -> None:
    """It is a linear map of 320 channels there; the features of real photographs spread over all of them."""
    teacher = build_backbone("timm/mobilenetv2_100", arguments={"pad_type": "same"}, feature="before").eval()
    weights = load_file(shared_data / "teacher_mobilenetv2_imagenet.safetensors")
    teacher.net.load_state_dict({key: tensor for key, tensor in weights.items() if not key.startswith("classifier.")})
    moments = Moments(1280)
    with zipfile.ZipFile(shared_data / "imagenette128.zip") as archive:
        names = [name for name in archive.namelist() if name.startswith("val/") and name.endswith(".jpg")][::2]
        pictures = [Image.open(archive.open(name)).convert("RGB").resize((64, 64)) for name in names[:1400]]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
    with torch.no_grad():
        for images in pixels.split(100):
            moments.update(teacher(images.float() / 127.5 - 1).pooled)
    svd = SvdAlignment(1280, 320).fit(moments)
    assert int(svd.rank_) == 320
    assert svd.variance_[319] > 100 * svd.variance_[320]
