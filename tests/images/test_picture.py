"""Encoded images: who decodes them, once, and to the same pixels."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from torch.nn.functional import interpolate

from stillroom.images import BrokenImageError, ImageDataset, picture, read_unlabelled
from stillroom.images.decode import load_image
from stillroom.images.jpeg import decoder, jpeg_size, may_be_turned, simplejpeg
from stillroom.images.picture import Picture, open_picture
from stillroom.images.view import Crop


def scene(width: int = 100, height: int = 70) -> Image.Image:
    """Smooth colours with edges."""
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    image.paste((250, 20, 20), (width // 3, height // 3, width // 2, height // 2))
    return image


def encoded(image: Image.Image, suffix: str = "JPEG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def turned(orientation: int, image: Image.Image, suffix: str = "JPEG") -> bytes:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return encoded(image, suffix, exif=tags)


@pytest.fixture(params=["simplejpeg", "pillow"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both decoders of JPEGs."""
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg")
    else:
        monkeypatch.setattr("stillroom.images.jpeg.simplejpeg", lambda: None)
    return request.param


@pytest.fixture
def by_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where Pillow decodes."""
    pytest.importorskip("simplejpeg")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Pillow decodes it")

    monkeypatch.setattr(picture, "load_image", refuse)


JPEGS = {
    "4:2:0": {"subsampling": 2},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0, "quality": 95},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("reduce", [1, 2, 4, 8])
@pytest.mark.usefixtures("by_simplejpeg")
def test_simplejpeg_gives_pillows_pixels_to_the_bit(name: str, reduce: int) -> None:
    data = encoded(scene(), **JPEGS[name])
    pixels = open_picture(data, "a.jpg").pixels(reduce)
    assert pixels.shape[:2] == (-(-70 // reduce), -(-100 // reduce))
    assert np.array_equal(pixels, np.array(load_image(data, "a.jpg", reduce)))


@pytest.mark.usefixtures("by_simplejpeg")
def test_a_grey_jpeg_becomes_rgb() -> None:
    data = encoded(scene().convert("L"))
    assert np.array_equal(open_picture(data, "a.jpg").pixels(), np.array(load_image(data)))


@pytest.mark.parametrize(
    "data",
    [
        encoded(scene().convert("CMYK")),
        encoded(scene(), keep_rgb=True),
        encoded(scene(), "PNG"),
        encoded(scene().convert("RGBA"), "PNG"),
        encoded(scene(), "WEBP"),
    ],
)
def test_pillow_decodes_what_simplejpeg_does_not(data: bytes) -> None:
    assert jpeg_size(data) is None
    assert np.array_equal(open_picture(data, "a").pixels(), np.array(load_image(data, "a")))


def test_a_jpeg_larger_than_pillows_limit_is_pillows_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BrokenImageError, match=r"^a\.jpg cannot be read as an image: .*shrink it"):
        open_picture(encoded(scene()), "a.jpg")


@pytest.mark.parametrize("kept", [2, 20, 300, 0.5, 0.9])
def test_of_a_truncated_jpeg_pillows_sentence_counts(library: str, kept: float) -> None:
    data = encoded(scene())
    data = data[: kept if kept > 1 else int(kept * len(data))]
    with pytest.raises(BrokenImageError) as ours:
        open_picture(data, "a.jpg").pixels()
    with pytest.raises(BrokenImageError) as pillows:
        load_image(data, "a.jpg")
    assert str(ours.value).split(" at 0x")[0] == str(pillows.value).split(" at 0x")[0]


def test_a_jpeg_that_pillow_reads_though_simplejpeg_finds_it_damaged_is_read(library: str) -> None:
    data = encoded(scene())
    data = data[:-2] + b"\x17\x17\x17" + data[-2:]  # before its end marker
    assert np.array_equal(open_picture(data, "a.jpg").pixels(), np.array(load_image(data, "a.jpg")))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.jpg")
    files = read_unlabelled(tmp_path)
    (tmp_path / "a.jpg").unlink()
    _, why = ImageDataset(files, lambda image, _: torch.from_numpy(image.pixels()))[0, 0]
    assert why.startswith(f"{tmp_path}/a.jpg cannot be read as an image: ")


# --- EXIF orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP"])
def test_the_exif_orientation_is_obeyed_unless_the_pixels_are_wanted_as_stored(
    library: str, suffix: str, orientation: int
) -> None:
    data = turned(orientation, scene(), suffix)
    seen, stored = open_picture(data, "a"), open_picture(data, "a", as_stored=True)
    assert stored.size == (100, 70) and seen.size == ((70, 100) if orientation >= 5 else (100, 70))
    assert np.array_equal(seen.pixels(), np.array(load_image(data, "a")))
    upright = seen.pixels() if suffix != "WEBP" else np.array(Image.open(BytesIO(data)).convert("RGB"))
    assert upright.shape[1::-1] == (seen.size if suffix != "WEBP" else stored.size)
    turns = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1]}
    turns |= {5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 8: lambda a: np.rot90(a)}
    turns |= {7: lambda a: np.rot90(a, 2).swapaxes(0, 1)}
    assert np.array_equal(seen.pixels(), turns[orientation](stored.pixels()))


XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation%s/></x:xmpmeta>"


def app1(content: bytes) -> bytes:
    return b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content


def exif(orientation: int) -> bytes:
    return b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0%c\0\0\0\0\0\0" % orientation


TURNED = {
    "EXIF": app1(exif(6)),
    "XMP attribute": app1(XMP % b'="6"'),
    "XMP element": app1(XMP % b">6</tiff:Orientation"),
    "fill bytes": b"\xff\xff\xff" + app1(exif(6)),
    "fill bytes before XMP": b"\xff" + app1(XMP % b'="6"'),
    "bytes between segments": b"\0\0junk" + app1(exif(6)),
    "a marker without a size": b"\xff\xd0" + app1(exif(6)),
    "an escaped byte": b"\xff\0" + app1(exif(6)),
    "a size below 2": b"\xff\xfe\0\1" + app1(exif(6)),
    "other APP1 segments first": app1(b"other") + app1(XMP % b'="1"') + app1(exif(6)),
    "EXIF before XMP": app1(exif(6)) + app1(XMP % b'="3"'),
    "EXIF in two segments": app1(exif(6)[:16]) + app1(b"Exif\0\0" + exif(6)[16:]),
    "the last of two XMP segments": app1(XMP % b'="3"') + app1(XMP % b'="6"'),
}


@pytest.mark.parametrize("segments", TURNED.values(), ids=TURNED)
def test_an_orientation_is_obeyed_wherever_pillow_takes_it_from(library: str, segments: bytes) -> None:
    plain = encoded(scene())
    data = plain[:20] + segments + plain[20:]  # behind JFIF's segment
    with Image.open(BytesIO(data)) as opened:
        assert opened.getexif().get(ExifTags.Base.Orientation) == 6
    picture = open_picture(data, "a.jpg")
    assert picture.size == (70, 100) and np.array_equal(picture.pixels(), np.array(load_image(data, "a.jpg")))


def test_a_plain_jpeg_is_not_parsed_for_an_orientation() -> None:
    for plain in (encoded(scene()), encoded(scene(), progressive=True), encoded(scene(), icc_profile=bytes(70_000))):
        assert not may_be_turned(plain)
    assert may_be_turned(turned(6, scene()))
    assert not may_be_turned(encoded(scene(), comment=b"Exif\0\0"))
    assert not may_be_turned(encoded(scene(), xmp=b"<x:xmpmeta/>"))


@given(
    place=st.integers(3, 22), content=st.binary(max_size=12), orientation=st.sampled_from([1, 6]), in_xmp=st.booleans()
)
def test_whatever_a_header_holds_both_decoders_turn_an_image_alike(
    place: int, content: bytes, orientation: int, in_xmp: bool
) -> None:
    segment = app1(XMP % b'="%d"' % orientation) if in_xmp else app1(exif(orientation))
    plain = encoded(scene())
    data = plain[:2] + segment + plain[2:]
    data = data[:place] + content + data[place:]
    try:
        by_pillow = load_image(data, "a.jpg")
    except BrokenImageError:
        return
    assert open_picture(data, "a.jpg").size == by_pillow.size


# --- crops


def test_a_picture_is_decoded_once() -> None:
    calls: list[int] = []

    def decode(reduce: int) -> np.ndarray:
        calls.append(reduce)
        return np.zeros((8, 8, 3), dtype=np.uint8)

    image = Picture((8, 8), decode)
    assert image.pixels() is image.pixels() and calls == [1]
    assert Picture.of(image) is image


@pytest.mark.parametrize("size", [64, 256])
def test_a_crop_of_a_large_jpeg_is_read_from_a_smaller_image_within_a_few_levels(library: str, size: int) -> None:
    """The mean difference is below one level of 255, that of sharp edges below 32."""
    data = encoded(scene(2300, 2200), quality=92)
    crop = Crop(top=80, left=110, height=2060, width=2050, mirrored=True)
    calls: list[int] = []
    image = open_picture(data, "a.jpg")
    whole = torch.from_numpy(image.pixels())[80:2140, 110:2160].permute(2, 0, 1)[None]
    expected = interpolate(whole, (size, size), mode="bilinear", antialias=True)[0].flip(2)
    decode = image._decode
    image._decode = lambda reduce: calls.append(reduce) or decode(reduce)
    difference = (crop.render(image, size).float() - expected).abs()
    assert calls == [4] and difference.mean() < 1 and difference.max() < 32


@pytest.mark.parametrize("sides", [(1023, 4000), (4000, 1023), (500, 375)])
def test_a_crop_of_less_than_four_times_the_size_is_read_from_the_whole_image(sides: tuple[int, int]) -> None:
    asked: list[int] = []
    image = Picture(sides, lambda reduce: asked.append(reduce) or np.zeros((*sides[::-1], 3), dtype=np.uint8))
    Crop(top=0, left=0, height=sides[1], width=sides[0], mirrored=False).render(image, 64)
    assert asked == [1]


def test_the_decoder_is_told_with_its_version(library: str) -> None:
    decoder.cache_clear()
    name, version = decoder().split()
    assert name == library and version[0].isdigit()
    decoder.cache_clear()
    assert callable(simplejpeg)


@pytest.mark.parametrize(("as_stored", "shape"), [(False, (100, 70, 3)), (True, (70, 100, 3))])
def test_a_dataset_turns_its_images_unless_told_not_to(
    tmp_path: Path, as_stored: bool, shape: tuple[int, int, int]
) -> None:
    (tmp_path / "a.jpg").write_bytes(turned(6, scene()))
    view = lambda image, _: torch.from_numpy(image.pixels()).permute(2, 0, 1)  # noqa: E731
    pixels = ImageDataset(read_unlabelled(tmp_path), view, as_stored=as_stored)[0, 0][1]
    assert tuple(pixels.permute(1, 2, 0).shape) == shape
