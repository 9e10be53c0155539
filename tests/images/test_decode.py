"""Images: which are found, how each is decoded, what tensor it becomes."""

import shutil
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from struct import pack

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from torch.nn.functional import interpolate
from torchvision.models import get_model_weights
from torchvision.transforms.v2 import functional as TF

from stillroom.backbone import InputSpec, Normalize, build_backbone
from stillroom.images import BrokenImageError, EvaluationView, read_labelled, read_unlabelled
from stillroom.images import view as view_module
from stillroom.images.decode import has_exif_orientation, load_image
from stillroom.images.formats import image_suffixes

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


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=rf"{tmp_path} holds no images, in subfolders neither"):
        read_unlabelled(tmp_path)


def test_labels_follow_the_sorted_class_folders(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/2.png", "cat/1.png", "cat/more/3.png"):
        put(tmp_path / name)
    put(tmp_path / ".cache" / "x.png")
    put(tmp_path / "._stray.png")
    files = read_labelled(tmp_path)
    assert files.classes == ("cat", "dog")
    assert list(files.labels or ()) == [0, 0, 0, 1]
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
    "tif": ("CMYK", "I;16", "1", "LAB", "YCbCr", "LA"),
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
    assert file.suffix in image_suffixes()
    pixels_of(mode).save(file)
    image = load_image(file)
    assert (image.mode, image.size) == ("RGB", (5, 3))
    tensor = EvaluationView(InputSpec(size=2, crop_fraction=1.0))(image)
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.uint8, (3, 2, 2))


def test_16_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png"))[0].tolist() == [[v] * 3 for v in (0, 1, 128, 255)]


def tiff(samples: np.ndarray, bits: int, *, photometric: int = 1, planes: int = 1, **more: tuple[int, bytes]) -> bytes:
    """A little-endian TIFF of samples (h, w) or (h, w, c); `more` are further tags: t339=(type, packed value)."""
    height, width, *channels = samples.shape
    count = channels[0] if channels else 1
    data = [samples[..., c] for c in range(count)] if planes == 2 else [samples]
    chunks = [part.tobytes() for part in data]
    if bits == 12:
        chunks = [int("".join(f"{v:012b}" for v in samples.ravel()), 2).to_bytes(samples.size * 3 // 2, "big")]
    tags: dict[int, tuple[int, bytes]] = {
        256: (4, pack("<I", width)),
        257: (4, pack("<I", height)),
        258: (3, pack(f"<{count}H", *[bits] * count)),
        259: (3, pack("<H", 1)),
        262: (3, pack("<H", photometric)),
        277: (3, pack("<H", count)),
        278: (4, pack("<I", height)),
        279: (4, pack(f"<{len(chunks)}I", *map(len, chunks))),
        284: (3, pack("<H", planes)),
        **{int(name[1:]): value for name, value in more.items()},
    }
    sizes = {3: 2, 4: 4, 11: 4}

    def head(offsets: list[int]) -> bytes:
        tags[273] = (4, pack(f"<{len(chunks)}I", *offsets))
        start, rows, extra = 8 + 2 + 12 * len(tags) + 4, b"", b""
        for tag, (kind, value) in sorted(tags.items()):
            place = value.ljust(4, b"\0") if len(value) <= 4 else pack("<I", start + len(extra))
            rows += pack("<HHI", tag, kind, len(value) // sizes[kind]) + place
            extra += value if len(value) > 4 else b""
        return b"II*\0" + pack("<I", 8) + pack("<H", len(tags)) + rows + pack("<I", 0) + extra

    first = len(head([0] * len(chunks)))
    return head([first + sum(map(len, chunks[:n])) for n in range(len(chunks))]) + b"".join(chunks)


def png(kind: int, bits: int, row: bytes, width: int, extra: bytes = b"") -> bytes:
    """A PNG of one row: colour type, bits per sample, its samples, and chunks before them."""
    chunks = [(b"IHDR", pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" + row))]
    parts = [pack(">I", len(data)) + name + data + pack(">I", zlib.crc32(name + data)) for name, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + parts[0] + extra + parts[1] + pack(">I", 0) + b"IEND" + pack(">I", 0xAE426082)


def chunk(name: bytes, data: bytes) -> bytes:
    return pack(">I", len(data)) + name + data + pack(">I", zlib.crc32(name + data))


def row(*values: float, of: type = np.uint16) -> np.ndarray:
    return np.array([values], dtype=of)


def pfm(*values: float) -> bytes:
    return b"Pf\n%d 1\n-1.0\n" % len(values) + row(*values, of=np.float32).tobytes()


def two_floats(low: float, high: float) -> dict[str, tuple[int, bytes]]:
    return {"t340": (11, pack("<f", low)), "t341": (11, pack("<f", high))}


BMP_565 = (  # two pixels, of red 1 of 31
    b"BM"
    + pack("<IHHI", 70, 0, 0, 66)
    + pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0)
    + pack("<III", 0xF800, 0x07E0, 0x001F)
    + pack("<HH", 0x0800, 0x0800)
)
SIGNED, FLOAT = {"t339": (3, pack("<H", 2))}, {"t339": (3, pack("<H", 3))}
DEEP = {
    "tif 16 bit": (tiff(row(0, 32896, 65535), 16), [0, 128, 255]),
    "tif 16 bit, white is 0": (tiff(row(0, 32639, 65535), 16, photometric=0), [255, 128, 0]),
    "tif 16 bit, signed": (tiff(row(0, 32767, of=np.int16), 16, **SIGNED), [0, 255]),
    "tif 8 bit, signed": (tiff(row(0, 64, 127, of=np.int8), 8, **SIGNED), [0, 128, 255]),
    "tif 16 bit, its largest value is a statistic": (
        tiff(row(0, 32896), 16, t281=(3, pack("<H", 32896))),
        [0, 128],
    ),
    "bmp 5, 6 and 5 bits, dark": (BMP_565, [[8, 0, 0], [8, 0, 0]]),
    "tif 12 bit": (tiff(row(0, 2056, 4095, 0), 12), [0, 128, 255, 0]),
    "tif 32 bit": (tiff(row(0, 2**31, 2**32 - 1, of=np.uint32), 32), [0, 127, 255]),
    "tif 32 bit, signed": (tiff(row(0, 2**30, 2**31 - 1, of=np.int32), 32, **SIGNED), [0, 127, 255]),
    "tif float": (tiff(row(0, 0.5, 1, of=np.float32), 32, **FLOAT), [0, 127, 255]),
    "tif float, range stated": (
        tiff(row(-10, 0, 30, of=np.float32), 32, **FLOAT, **two_floats(-10, 30)),
        [0, 63, 255],
    ),
    "tif 16 bit, range stated": (tiff(row(0, 2048, 4095), 16, **two_floats(0, 4095)), [0, 127, 255]),
    "tif 16 bit colours": (
        tiff(np.array([[[65535, 0, 0], [0, 32896, 65535]]], np.uint16), 16, photometric=2),
        [[255, 0, 0], [0, 128, 255]],
    ),
    "pgm 12 bit": (b"P5 3 1 4095\n" + row(0, 2056, 4095).astype(">u2").tobytes(), [0, 128, 255]),
    "pgm 10 bit, plain": (b"P2 3 1 1023\n0 514 1023\n", [0, 128, 255]),
    "ppm 12 bit": (b"P6 1 1 4095\n" + row(0, 4095, 2048).astype(">u2").tobytes(), [[0, 255, 128]]),
    "pfm": (pfm(0, 0.25, 1), [0, 63, 255]),
    "png 16 bit colours": (png(2, 16, row(65535, 0, 32896).astype(">u2").tobytes(), 1), [[255, 0, 128]]),
    "png 16 bit, half clear": (png(4, 16, row(0, 32896).astype(">u2").tobytes(), 1), [127]),
    "png 16 bit, one value clear": (
        png(0, 16, row(0, 7, 65535).astype(">u2").tobytes(), 3, chunk(b"tRNS", pack(">H", 7))),
        [0, 255, 255],
    ),
    "png 16 bit, black": (png(0, 16, bytes(4), 2), [0, 0]),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_samples_are_scaled_by_what_their_file_says(tmp_path: Path, name: str) -> None:
    content, expected = DEEP[name]
    (tmp_path / "a.png").write_bytes(content)  # the content tells the format
    pixels = np.asarray(load_image(tmp_path / "a.png"))[0].tolist()
    assert pixels == [value if isinstance(value, list) else [value] * 3 for value in expected]


DIM = "would be read as black: scale its samples up to white"
REFUSED = {
    "12 bits in 16, png": (
        png(0, 16, row(0, 4095).astype(">u2").tobytes(), 2),
        f"is 4095 where white is 65535, so it {DIM}",
    ),
    "10 bits in 16, tif": (tiff(row(0, 1023), 16), f"is 1023 where white is 65535, so it {DIM}"),
    "12 bits in 16, colours": (
        png(2, 16, row(4095, 4095, 0).astype(">u2").tobytes(), 1),
        f"is 3840 where .* so it {DIM}",
    ),
    "12 bits in 16, clear": (png(6, 16, row(4095, 9, 0, 0).astype(">u2").tobytes(), 1), DIM),
    "14 bits in 16, as its tags say": (
        tiff(row(0, 9000), 16, t281=(3, pack("<H", 16383))),
        "its MaxSampleValue is 16383 where white is 65535: rescale them, or state their range in the TIFF tags",
    ),
    "floats to 0.03": (tiff(row(0, 0.03, of=np.float32), 32, **FLOAT), f"is 0.03 where white is 1, so it {DIM}"),
    "16 bits in 32": (tiff(row(0, 65535, of=np.uint32), 32), f"is 65535 where white is 4.29497e.09, so it {DIM}"),
    "below zero": (
        tiff(row(-5, 32767, of=np.int16), 16, **SIGNED),
        "samples are -5 to 32767, expected 0 .black. to 32767",
    ),
    "below zero, 8 bit": (
        tiff(row(-5, 127, of=np.int8), 8, **SIGNED),
        "samples are -5 to 127, expected 0 .black. to 127",
    ),
    "floats to 255": (
        tiff(row(0, 255, of=np.float32), 32, **FLOAT),
        "samples are 0 to 255, expected 0 .black. to 1 .wh",
    ),
    "pfm to 9": (pfm(0, 9), "samples are 0 to 9, expected 0 .black. to 1 .white.: rescale them$"),
    "not a number": (pfm(0, float("nan")), "samples are nan to nan"),
    "infinite": (pfm(0, float("inf")), "samples are 0 to inf"),
    "outside of its range": (
        tiff(row(0, 5000), 16, **two_floats(0, 4095)),
        "samples are 0 to 5000, expected 0 .black. to 4095",
    ),
    "planes": (tiff(np.full((2, 2, 3), 30000, np.uint16), 16, photometric=2, planes=2), "lie in separate planes"),
    "FITS": (
        "".join(
            f"{card:80}" for card in ("SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 2", "NAXIS2  = 1", "END")
        )
        .ljust(2880)
        .encode()
        + bytes(2880),
        "nothing says which of its I;16 samples is white: save it as PNG",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_deep_samples_of_unknown_range_are_refused_by_name(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(BrokenImageError, match=rf"^{tmp_path}/a\.tif cannot be read as an image: .*{message}"):
        load_image(tmp_path / "a.tif")


def test_inks_are_read_as_colours(tmp_path: Path) -> None:
    """Ink-free is white, full cyan ink is no red: as JPEG (whose inks Adobe stores inverted) and as TIFF."""
    inks = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    for name in ("a.jpg", "a.tif"):
        inks.save(tmp_path / name)
        red, green, blue = load_image(tmp_path / name).getpixel((8, 8))
        assert red < 20 and green > 235 and blue > 235


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
        BrokenImageError,
        match=r"a\.png cannot be read as an image: .*decompression bomb.*; shrink it, or leave it out$",
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


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (9_999, 3), (1, 1)])
@pytest.mark.parametrize("spec", [InputSpec(), InputSpec(interpolation="bicubic", antialias=False)])
def test_a_thin_image_is_cropped_before_it_grows(
    size: tuple[int, int], spec: InputSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = []

    def resize(pixels: torch.Tensor, sides: tuple[int, int], **settings: object) -> torch.Tensor:
        grown.append(max(sides))
        return interpolate(pixels, sides, **settings)

    monkeypatch.setattr(view_module, "interpolate", resize)
    tensor = EvaluationView(spec)(Image.new("RGB", size, "teal"))
    assert tensor[:, 0, 0].tolist() == [0, 128, 128] and tuple(tensor.shape) == (3, 224, 224)
    assert max(grown) <= 256 * 34


@pytest.mark.parametrize("width", [321, 1000, 1001])
def test_the_crop_of_a_thin_image_is_its_centre(width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, width, 3), dtype=np.uint8)
    spec = InputSpec(size=20, crop_fraction=0.5)  # its short side is resized to 40 px
    resized = TF.resize(torch.from_numpy(pixels).permute(2, 0, 1), [40, width * 4], antialias=True)
    left = round((width * 4 - 20) / 2)
    ours = EvaluationView(spec)(Image.fromarray(pixels))
    assert (ours.int() - resized[:, 10:30, left : left + 20].int()).abs().max() <= 1


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


MALFORMED = (
    b"b'Exif\\x00\\x00MM\\x00*\\x00'",  # printed bytes, as image tools wrote them
    b"",
    b"Exif\0\0",
    b"Exif\0\0MM\0*",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03",
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04six\0\0\0\0\0",  # the orientation is a text
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\xff\xff\xff\xff\0\0\0\0",
)


@pytest.mark.filterwarnings("ignore:::PIL")  # about the damage
@pytest.mark.parametrize("block", MALFORMED)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_malformed_exif_block_is_read_as_upright(tmp_path: Path, suffix: str, block: bytes) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    image.save(tmp_path / f"a.{suffix}", exif=block)
    with Image.open(tmp_path / f"a.{suffix}") as opened:
        assert not has_exif_orientation(opened)
    assert load_image(tmp_path / f"a.{suffix}").size == (8, 6)
