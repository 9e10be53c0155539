"""Images: which are found, how each is decoded, what tensor it becomes."""

import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from torchvision.models import get_model_weights
from torchvision.transforms.v2 import functional as TF

from stillroom.backbone import (
    BrokenImageError,
    EvaluationView,
    InputSpec,
    Normalize,
    build_backbone,
    read_labelled,
    read_unlabelled,
)
from stillroom.backbone.image_files import EXTENSIONS
from stillroom.backbone.images import has_exif_orientation, load_image

CPU = torch.device("cpu")


def put(file: Path, size: tuple[int, int] = (4, 4), colour: str = "red") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)
    return file


# --- which files


def test_images_are_found_in_subfolders_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ["b/2.png", "a.png", "b/10.JPG", "b/c/1.jpeg", "z.webp"]
    for name in names:
        put(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    (tmp_path / "list.csv").write_text("a.png")
    files = read_unlabelled(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in files.paths] == sorted(names)
    assert (len(files), files.labels, files.classes) == (5, None, ())


def test_the_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    names = [f"{i:02d}.png" for i in range(12)]
    for folder, order in (("x", names), ("y", names[::-1])):
        for name in order:
            put(tmp_path / folder / name)
    first, second = read_unlabelled(tmp_path / "x"), read_unlabelled(tmp_path / "y")
    assert [p.name for p in first.paths] == [p.name for p in second.paths] == names
    assert first.fingerprint == second.fingerprint


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    assert len(read_unlabelled(tmp_path / "data")) == 1


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for read in (read_unlabelled, read_labelled):
        with pytest.raises(ValueError, match=f"there is no folder {tmp_path}/none"):
            read(tmp_path / "none")


def test_a_folder_without_images_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=rf"{tmp_path} holds no images \(looked for \.bmp, .*, in subfolders too"):
        read_unlabelled(tmp_path)


def test_labels_follow_the_sorted_class_folders(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/2.png", "cat/1.png", "cat/more/3.png"):
        put(tmp_path / name)
    put(tmp_path / ".cache" / "x.png")
    put(tmp_path / "._stray.png")
    files = read_labelled(tmp_path)
    assert files.classes == ("cat", "dog")
    assert files.labels == (0, 0, 0, 1)
    assert [p.relative_to(tmp_path).as_posix() for p in files.paths] == [
        "cat/1.png",
        "cat/2.png",
        "cat/more/3.png",
        "dog/1.png",
    ]


def test_given_classes_fix_the_labels(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png"):
        put(tmp_path / name)
    files = read_labelled(tmp_path, classes=("dog", "cat"))
    assert files.classes == ("dog", "cat")
    assert {p.parent.name: label for p, label in zip(files.paths, files.labels or (), strict=True)} == {
        "dog": 0,
        "cat": 1,
    }


def test_classes_that_differ_from_the_training_sets_are_named(tmp_path: Path) -> None:
    for name in ("cat/1.png", "eel/1.png"):
        put(tmp_path / name)
    with pytest.raises(ValueError, match=r"differ from the training set's: missing \['dog'\], extra \['eel'\]"):
        read_labelled(tmp_path, classes=("cat", "dog"))


def test_a_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"holds no class folders: expected {tmp_path.name}/<class>/<image>"):
        read_labelled(tmp_path)


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png", "b.png", "a.png"):
        put(tmp_path / name)
    with pytest.raises(ValueError, match=r"holds 2 images beside its class folders, the first is a\.png"):
        read_labelled(tmp_path)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "a.png")
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError, match=f"class folder {tmp_path}/dog holds no images"):
        read_labelled(tmp_path)


def test_the_fingerprint_sees_names_sizes_and_number_of_files_and_not_copies_or_dates(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x.png")
    put(tmp_path / "a" / "y.png", (9, 9))
    first = read_unlabelled(tmp_path / "a").fingerprint
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)  # new dates
    assert read_unlabelled(tmp_path / "b").fingerprint == first
    put(tmp_path / "b" / "y.png", (40, 40), "blue")
    resized = read_unlabelled(tmp_path / "b").fingerprint
    put(tmp_path / "a" / "z.png")
    added = read_unlabelled(tmp_path / "a").fingerprint
    (tmp_path / "a" / "z.png").rename(tmp_path / "a" / "w.png")
    renamed = read_unlabelled(tmp_path / "a").fingerprint
    assert len({first, resized, added, renamed}) == 4


# --- decoding


def pixels_of(mode: str) -> Image.Image:
    """A 5 x 3 ramp in `mode`."""
    ramp = np.linspace(0, 255, 15).astype(np.uint8).reshape(3, 5)
    match mode:
        case "I;16":
            return Image.fromarray(ramp.astype(np.uint16) * 257)
        case "P":
            return Image.fromarray(ramp).convert("RGB").quantize(16)
        case "LA":
            return Image.merge("LA", (Image.fromarray(ramp), Image.new("L", (5, 3), 255)))
        case _:
            return Image.fromarray(ramp).convert(mode)


MODES_BY_SUFFIX = {
    "png": ("L", "LA", "P", "RGB", "RGBA", "1", "I;16"),
    "tif": ("CMYK", "I;16", "I", "1", "LAB"),
    "jpg": ("L", "CMYK", "YCbCr"),
    "gif": ("P",),
    "bmp": ("RGB",),
    "webp": ("RGBA",),
    "pgm": ("L",),
    "ppm": ("RGB",),
}


@pytest.mark.parametrize(
    ("mode", "suffix"), [(mode, suffix) for suffix, modes in MODES_BY_SUFFIX.items() for mode in modes]
)
def test_every_mode_and_format_becomes_8_bit_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    assert file.suffix in EXTENSIONS
    pixels_of(mode).save(file)
    image = load_image(file)
    assert (image.mode, image.size) == ("RGB", (5, 3))
    tensor = EvaluationView(InputSpec(size=2, crop_fraction=1.0))(image)
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.uint8, (3, 2, 2))


def test_16_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png"))[0].tolist() == [[v] * 3 for v in (0, 1, 128, 255)]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_becomes_white(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "a.png"
    if mode in ("RGBA", "LA"):
        clear = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
        clear.putpixel((1, 0), (0, 0, 0, 0))
        clear.convert(mode).save(file)
    else:  # one colour is declared transparent
        image = Image.fromarray(np.array([[0, 7]], dtype=np.uint8)).convert(mode)
        if mode == "P":
            image.putpalette([0, 0, 0] * 7 + [9, 9, 9] + [7, 7, 7])
        image.save(file, transparency=(7, 7, 7) if mode == "RGB" else 7)
    assert np.asarray(load_image(file))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png"))[0, 0].tolist() == [255, 127, 127]


@pytest.mark.parametrize("content", [b"", b"this is no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BrokenImageError, match=f"^{tmp_path}/a.jpg cannot be read as an image: "):
        load_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "gif", "ppm", "webp"])
def test_a_truncated_image_is_found_and_not_read_as_grey(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{suffix}")
    content = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(content[: len(content) // 2])
    with pytest.raises(BrokenImageError, match=rf"a\.{suffix} cannot be read as an image"):
        load_image(tmp_path / f"a.{suffix}")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    put(tmp_path / "a.png", (30, 30))
    with pytest.raises(
        BrokenImageError, match=r"a\.png cannot be read as an image: .*decompression bomb.*; shrink it, or leave it"
    ):
        load_image(tmp_path / "a.png")


def encoded(suffix: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise).save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:::PIL")  # about the damage
@settings(max_examples=60, deadline=None)
@given(data=st.data(), suffix=st.sampled_from(["jpg", "png", "bmp", "tif", "gif", "ppm", "webp"]))
def test_any_damage_gives_an_image_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, suffix: str
) -> None:
    content = bytearray(encoded(suffix))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # damage may ask for gigabytes
        try:
            assert load_image(file).mode == "RGB"
        except BrokenImageError as error:
            assert file.name in str(error)


# --- tensors


@pytest.mark.parametrize("size", [(50, 50), (80, 40), (40, 80), (33, 97), (7, 5)])
@pytest.mark.parametrize("resize", ["short side", "squash"])
def test_the_evaluation_view_is_square_whatever_the_image(size: tuple[int, int], resize: str) -> None:
    view = EvaluationView(InputSpec(size=28, crop_fraction=0.875, resize=resize))
    tensor = view(Image.new("RGB", size, "teal"))
    assert (tuple(tensor.shape), tensor.dtype) == ((3, 28, 28), torch.uint8)
    assert tensor[:, 0, 0].tolist() == tensor[:, -1, -1].tolist() == [0, 128, 128]  # no padding


@pytest.mark.parametrize("resize", ["short side", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
def test_the_evaluation_view_equals_torchvisions_resize_and_crop(
    resize: str, interpolation: str, antialias: bool
) -> None:
    generator = np.random.default_rng(0)
    for width, height, size, crop in ((90, 61, 32, 0.875), (33, 97, 48, 0.9), (20, 41, 32, 1.0), (32, 32, 32, 1.0)):
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        spec = InputSpec(size=size, crop_fraction=crop, resize=resize, interpolation=interpolation, antialias=antialias)
        sides = [size, size] if resize == "squash" else [round(size / crop)]
        resized = TF.resize(TF.pil_to_tensor(image), sides, TF.InterpolationMode(interpolation), antialias=antialias)
        theirs, ours = TF.center_crop(resized, [size, size]), EvaluationView(spec)(image)
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()  # a batch of them has the same layout, and so the same last digits


def stripes(width: int, height: int) -> Image.Image:
    """White in the middle half of the width, black on the left and right quarters."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, width // 4 : 3 * width // 4] = 255
    return Image.fromarray(pixels)


def test_short_side_crops_the_centre_and_squash_keeps_the_edges() -> None:
    image = stripes(80, 40)
    cropped = EvaluationView(InputSpec(size=20, crop_fraction=1.0))(image)
    assert (cropped[:, :, 1:-1] == 255).all()  # the filter mixes the outermost columns with what was cut off
    squashed = EvaluationView(InputSpec(size=20, crop_fraction=1.0, resize="squash"))(image)
    assert (squashed[:, :, :4] == 0).all() and (squashed[:, :, 8:12] == 255).all() and (squashed[:, :, -4:] == 0).all()


def test_the_crop_fraction_is_crop_over_short_side() -> None:
    image = stripes(64, 64)  # white from 16 to 48
    half = EvaluationView(InputSpec(size=32, crop_fraction=0.5))(image)
    assert (half == 255).all()
    whole = EvaluationView(InputSpec(size=64, crop_fraction=1.0))(image)
    assert np.array_equal(whole.permute(1, 2, 0).numpy(), np.asarray(image))


@pytest.mark.parametrize("field", ["interpolation", "antialias"])
def test_interpolation_and_antialias_are_heeded(field: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    spec = InputSpec(size=32)
    other = replace(spec, **{field: {"interpolation": "bicubic", "antialias": False}[field]})
    assert not torch.equal(EvaluationView(spec)(noise), EvaluationView(other)(noise))


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_the_evaluation_view_is_the_preset_of_torchvisions_weights_within_one_level(name: str) -> None:
    """Theirs resizes with Pillow and ours with torch: both in 8 bits, so a few roundings differ."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    spec = build_backbone(f"torchvision/{name}").spec.input
    theirs = get_model_weights(name).DEFAULT.transforms()(noise)
    levels = (
        (Normalize(spec)(EvaluationView(spec)(noise)[None])[0] - theirs) * torch.tensor(spec.std)[:, None, None] * 255
    )
    assert levels.abs().max() < 1.01
    assert (levels.abs() > 0.01).float().mean() < 0.01


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 1000),
    order=st.sampled_from(["rgb", "bgr"]),
    value_range=st.sampled_from([(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)]),
    as_bytes=st.booleans(),
)
def test_normalize_is_the_numpy_computation(
    seed: int, order: str, value_range: tuple[float, float], as_bytes: bool
) -> None:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    low, high = value_range
    mean = generator.uniform(low, high, 3)
    std = generator.uniform(0.1, 1.0, 3) * (high - low)
    spec = InputSpec(mean=tuple(mean), std=tuple(std), channel_order=order, value_range=value_range)
    images = torch.from_numpy(pixels)
    ours = Normalize(spec)(images if as_bytes else images / 255)
    values = low + (high - low) * pixels.astype(np.float64) / 255
    if order == "bgr":
        values = values[:, ::-1]
    expected = (values - mean[:, None, None]) / std[:, None, None]
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=2e-5)


def test_normalize_keeps_nothing_in_the_state_dict() -> None:
    assert not Normalize(InputSpec()).state_dict()


@pytest.mark.parametrize(("orientation", "turned"), [(None, False), (0, False), (1, False), (3, True), (6, True)])
def test_a_jpeg_that_its_tag_turns_is_told(tmp_path: Path, orientation: int | None, turned: bool) -> None:
    image = Image.new("RGB", (8, 6))
    tags = image.getexif()
    if orientation is not None:
        tags[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / "a.jpg", exif=tags)
    with Image.open(tmp_path / "a.jpg") as opened:
        assert has_exif_orientation(opened) == turned
