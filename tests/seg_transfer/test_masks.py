"""Masks: their own bit depth, what a label may be, and how a mask lies beside a turned image."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmseg.datasets.transforms import LoadAnnotations
from PIL import ExifTags, Image

from stillroom.images import BrokenImageError
from stillroom.seg_transfer import SegmentConfig, finetune, predict
from stillroom.seg_transfer.data import read_data
from stillroom.seg_transfer.masks import check_pair, read_labels, read_mask
from stillroom.seg_transfer.transforms import LONGEST, LoadMask, ScaleBy

Make = Callable[..., SegmentConfig]
MASK = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4


def write_grey(file: Path, labels: np.ndarray, bits: int) -> None:
    """A grey PNG of so many bits, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = labels.shape
    rows = b""
    for row in labels:
        digits = "".join(f"{label:0{bits}b}" for label in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def tag(file: Path, orientation: int) -> None:
    """Give an image an EXIF orientation; its pixels stay."""
    image = Image.open(file)
    image.load()
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    image.save(file, exif=tags)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_of_every_depth_gives_its_own_indices(tmp_path: Path, bits: int) -> None:
    labels = MASK % min(2**bits, 4)
    write_grey(tmp_path / "m.png", labels, bits)
    read = read_mask(tmp_path / "m.png")
    assert read.dtype == np.uint8 and (read == labels).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_give_their_indices_whatever_their_colours(tmp_path: Path, bits: int) -> None:
    image = Image.fromarray(MASK % min(2**bits, 4)).convert("P")
    image.putdata((MASK % min(2**bits, 4)).ravel().tolist())
    image.putpalette([7, 200, 9, 250, 0, 0, 0, 0, 255, 9, 9, 9])
    image.save(tmp_path / "m.png", bits=bits, transparency=0)
    assert (read_mask(tmp_path / "m.png") == MASK % min(2**bits, 4)).all()


def test_opaque_alpha_is_ignored_and_transparent_pixels_are_refused(tmp_path: Path) -> None:
    for alpha, name in ((255, "opaque"), (0, "clear")):
        Image.fromarray(np.stack([MASK, np.full_like(MASK, alpha)], axis=-1), "LA").save(tmp_path / f"{name}.png")
    assert (read_mask(tmp_path / "opaque.png") == MASK).all()
    with pytest.raises(ValueError, match=r"clear.png has transparent pixels: give them a label, 255 if they have none"):
        read_mask(tmp_path / "clear.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_refused_with_what_to_do(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 3)).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=f"m.png has mode {mode}, not one index per pixel: map its colours to indices"):
        read_labels(tmp_path / "m.png")


def test_a_jpeg_named_as_a_png_is_refused(tmp_path: Path) -> None:
    Image.fromarray(MASK).save(tmp_path / "m.png", format="JPEG")
    with pytest.raises(ValueError, match=r"m.png is a JPEG, whose compression changes indices"):
        read_labels(tmp_path / "m.png")


def test_damaged_and_bomb_sized_masks_and_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = tmp_path / "i.jpg", tmp_path / "m.png"
    Image.new("RGB", (40, 30)).save(image)
    noise = np.random.default_rng(0).integers(0, 2, (30, 40), dtype=np.uint8)
    Image.fromarray(noise).save(mask)
    whole = mask.read_bytes()
    mask.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BrokenImageError, match=r"m.png cannot be read as an image: "):
        check_pair(image, mask, 2)
    mask.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(BrokenImageError, match=r"m.png cannot be read as an image: Image size .1200 pixels. exceeds"):
        check_pair(image, mask, 2)
    Image.fromarray(noise[:3, :4]).save(mask)
    with pytest.raises(BrokenImageError, match=r"i.jpg cannot be read as an image: Image size .1200 pixels. exceeds"):
        check_pair(image, mask, 2)


def fill(root: Path, part: str, *labels: int) -> None:
    """Masks whose upper rows hold the labels, one row each, and the first label below."""
    for file in (root / "labels" / part).iterdir():
        mask = np.full((32, 40), labels[0], np.uint8)
        for row, label in enumerate(labels):
            mask[row] = label
        Image.fromarray(mask).save(file)


def test_white_as_foreground_is_refused_with_what_to_write(make_config: Make, masked: Path) -> None:
    (masked / "classes.txt").write_text("background\nthing\n")
    for train, val in (((0, 255), (0, 255)), ((0, 1), (0, 255)), ((255, 0), (0, 1))):
        fill(masked, "train", *train)
        fill(masked, "val", *val)
        config = make_config()
        with pytest.raises(ValueError, match=r"hold 0 and 255 only, and 255 is no class .*white is 'thing', write 1"):
            finetune(config)
        assert not config.out.exists()


def test_masks_of_0_and_255_among_others_are_said(make_config: Make, masked: Path) -> None:
    (masked / "classes.txt").write_text("background\nthing\n")
    fill(masked, "train", 0, 1)
    fill(masked, "val", 0, 1)
    assert read_data(make_config()).notes == ()
    Image.fromarray(np.asarray([[0] * 40] * 31 + [[255] * 40], np.uint8)).save(masked / "labels/train/03.png")
    (note,) = read_data(make_config()).notes
    assert note.startswith(
        "1 of 9 train masks hold 0 and 255 only, and 255 is unlabelled: if it is 'thing' there, write"
    )


def test_a_class_without_a_training_pixel_is_refused(make_config: Make, masked: Path) -> None:
    fill(masked, "train", 0, 2, 255)
    words = (
        r"1 of 3 classes have no pixel in the train masks: left \(255 is no class, but unlabelled pixels\); add images"
    )
    with pytest.raises(ValueError, match=words):
        read_data(make_config())


def test_impossible_labels_are_refused_with_their_count_and_the_file(make_config: Make, masked: Path) -> None:
    wide = np.zeros((32, 40), np.uint16)
    wide[0, :3], wide[1, :2] = 256, 65535
    write_grey(masked / "labels/train/02.png", wide, 16)
    with pytest.raises(ValueError, match=r"02.png holds labels 256, 65535 in 5 of its 1280 pixels: classes are 0 to 2"):
        read_data(make_config())


def test_classes_absent_from_val_are_said_and_no_nan_enters_a_json(
    make_config: Make, masked: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(masked, "val", 0)
    monkeypatch.setattr(  # a net that predicts background everywhere
        "stillroom.seg_transfer.metrics.ClassIoU.process",
        lambda self, batch, samples: self.results.append(
            [__import__("torch").tensor([float(n), 0.0, 0.0]) for n in (9, 9, 9, 9)]
        ),
    )
    out = finetune(make_config(steps=1))
    said = "2 of 3 classes have no pixel in the val masks: left, right; each counts as 0 in mIoU if it is predicted"
    assert said in capsys.readouterr().err
    content = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)
    assert content["metrics"]["mIoU_foreground"] is None and content["metrics"]["mIoU"] == 1.0
    assert content["not_finite"]["metrics.mIoU_foreground"].startswith("0 of 0: the validation masks hold no pixel")
    assert content["extra"]["absent_from_val"] == ["left", "right"] and said in content["extra"]["notes"][0]


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_image_and_its_mask_are_taken_as_they_are_seen(
    make_config: Make, masked: Path, tmp_path: Path, orientation: int
) -> None:
    file, mask = masked / "images/train/03.jpg", masked / "labels/train/03.png"
    tag(file, orientation)
    if orientation != 3:  # a mask that lies as the stored pixels do
        with pytest.raises(
            ValueError, match=r"03.png is 40 x 32 px, its image 32 x 40 as it is seen: .*save both upri"
        ):
            read_data(make_config())
    with Image.open(mask) as stored:
        turned = stored.rotate({3: 180, 6: 270, 8: 90}[orientation], expand=True)
    turned.save(mask)
    (note,) = read_data(make_config()).notes
    assert note.startswith(
        "1 of 9 train images are turned by their EXIF tag: they and their masks are taken as they are"
    )
    out = finetune(make_config(steps=1))
    (tmp_path / "new").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 64, 3), dtype=np.uint8)).save(tmp_path / "new/u.png")
    with Image.open(tmp_path / "new/u.png") as seen:
        back = seen.rotate({3: 180, 6: 90, 8: 270}[orientation], expand=True)
    back.save(tmp_path / "new/t.png")
    tag(tmp_path / "new/t.png", orientation)
    answers = predict(out, tmp_path / "new", tmp_path / "answers", device="cpu")
    straight, turned_answer = (np.asarray(Image.open(answers / "masks" / f"{name}.png")) for name in "ut")
    assert straight.shape == (32, 64) and (straight == turned_answer).all()
    assert Image.open(answers / "overlays" / "t.png").size == (64, 32)


def test_a_malformed_exif_block_is_read_as_upright(make_config: Make, masked: Path) -> None:
    for number, block in enumerate(
        (b"b'Exif\\x00\\x00MM\\x00*\\x00'", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0")
    ):
        file = masked / f"images/train/{number:02d}.jpg"
        with Image.open(file) as image:
            image.load()
        image.save(file.with_suffix(".png"), exif=block)
        file.unlink()
    assert read_data(make_config()).notes == ()


def test_the_mask_of_the_pipeline_is_mmsegmentations_with_the_files_own_indices(tmp_path: Path) -> None:
    Image.fromarray(np.asarray([[0, 1, 150, 255]], np.uint8)).save(tmp_path / "m.png")
    for zero_ignored in (False, True):
        given = {"seg_map_path": str(tmp_path / "m.png"), "reduce_zero_label": zero_ignored, "label_map": None}
        ours, theirs = (load(given | {"seg_fields": []}) for load in (LoadMask(), LoadAnnotations()))
        assert (ours.pop("gt_seg_map") == theirs.pop("gt_seg_map")).all() and ours == theirs


def test_thin_images_are_resized_to_one_pixel_at_least_and_no_further_than_opencv_rotates() -> None:
    for shape, factor, expected in (
        ((1, 500), 0.3, (1, 150)),
        ((1, 20_000), 2.0, (2, LONGEST)),
        ((40, 3), 0.1, (4, 1)),
    ):
        given = {"img": np.zeros((*shape, 3), np.uint8), "gt_seg_map": np.zeros(shape, np.uint8)}
        scaled = ScaleBy((factor, factor))(given)
        assert scaled["img"].shape[:2] == scaled["gt_seg_map"].shape == expected


def test_a_strip_is_trained_on_and_evaluated(make_config: Make, masked: Path) -> None:
    for part in ("train", "val"):
        for name in ("00", "01", "02"):
            Image.new("RGB", (3000, 1)).save(masked / "images" / part / f"{name}.jpg")
            Image.fromarray(np.arange(3000, dtype=np.uint16)[None].astype(np.uint8) % 3).save(
                masked / "labels" / part / f"{name}.png"
            )
    out = finetune(make_config(steps=2, scales=(0.3, 1.0)))
    assert (out / "results.json").exists()
