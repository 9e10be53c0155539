"""Images with masks: folders, and published layouts."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image

from stillroom.seg_transfer import SegmentConfig
from stillroom.seg_transfer.data import PUBLISHED, read_data, read_published

Make = Callable[..., SegmentConfig]


def test_a_folder_is_read_in_the_order_of_its_names(make_config: Make) -> None:
    data = read_data(make_config())
    assert data.classes == ("background", "left", "right") and data.words == ""
    assert [image.stem for image, _ in data.train.pairs] == [f"{n:02d}" for n in range(9)]
    assert all(image.stem == mask.stem for image, mask in (*data.train.pairs, *data.val.pairs))
    assert (data.train.record.count, data.val.record.count) == (9, 3)
    init_default_scope("mmseg")
    rows = DATASETS.build({**data.val.config, "pipeline": []})
    assert [(Path(r["img_path"]), Path(r["seg_map_path"])) for r in map(rows.get_data_info, range(3))] == data.val.pairs
    assert rows.metainfo["classes"] == data.classes


def test_the_fingerprint_knows_the_masks_too(make_config: Make, masked: Path) -> None:
    before = read_data(make_config()).train.record
    mask = masked / "labels" / "train" / "03.png"
    changed = np.asarray(Image.open(mask)).copy()
    changed[::2, ::3] = 255
    Image.fromarray(changed).save(mask)
    assert read_data(make_config()).train.record.fingerprint != before.fingerprint


def test_hidden_files_are_left_out_and_shared_images_counted(make_config: Make, masked: Path) -> None:
    for folder, name in (("images/train", "00.jpg"), ("labels/train", "00.png")):
        (masked / folder / ".ipynb_checkpoints").mkdir()
        shutil.copy(masked / folder / name, masked / folder / ".ipynb_checkpoints" / f"copy-{name}")
        shutil.copy(masked / folder / name, masked / folder / f"._{name}")
        shutil.copy(masked / folder / name, masked / folder.replace("train", "val") / f"same{Path(name).suffix}")
    (masked / "images" / "train" / "README").write_text("")
    data = read_data(make_config())
    assert (data.train.record.count, data.val.record.count) == (9, 4)
    assert data.train.record.left_out == {"hidden": 4, "not an image": 1}
    assert (data.train.record.in_train, data.val.record.in_train) == (None, 1)


def test_every_format_that_pillow_decodes_is_segmented(make_config: Make, masked: Path) -> None:
    for suffix, name in ((".tif", "00.jpg"), (".jp2", "01.jpg")):
        file = masked / "images" / "val" / name
        Image.open(file).save(file.with_suffix(suffix))
        file.unlink()
    assert [image.name for image, _ in read_data(make_config()).val.pairs] == ["00.tif", "01.jp2", "02.jpg"]


def test_a_mark_of_the_encoding_is_no_letter_of_a_class(make_config: Make, masked: Path) -> None:
    file = masked / "classes.txt"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert read_data(make_config()).classes[0] == "background"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: (r / "classes.txt").unlink(), "there is no .*classes.txt: it must name the classes, one per line"),
        (lambda r: (r / "classes.txt").write_text("one\n"), "names 1 classes: 2 to 255 were expected"),
        (lambda r: (r / "classes.txt").write_text("a\nb\na\n"), "names a twice"),
        (lambda r: (r / "classes.txt").write_bytes("a\nö\n".encode("latin-1")), "classes.txt is not UTF-8 text"),
        (lambda r: (r / "labels/train/03.png").unlink(), r"1 images have no mask in .* \(train\), the first is 03"),
        (lambda r: (r / "images/val/01.jpg").unlink(), r"1 masks have no image in .* \(val\), the first is 01"),
        (
            lambda r: (r / "labels/val").rename(r / "labels/x"),
            "there is no folder .*labels/val: .* needs images/val and",
        ),
        (lambda r: [f.unlink() for f in (r / "images/val").iterdir()], "images/val holds no image"),
        (
            lambda r: Image.open(r / "images/train/03.jpg").save(r / "images/train/03.png"),
            "03.jpg and .*03.png would share one mask",
        ),
        (
            lambda r: Image.fromarray(np.full((32, 40), 3, np.uint8)).save(r / "labels/train/02.png"),
            "1 of 9 masks do not fit; .*train/02.png holds label 3 in 1280 of its 1280 pixels: classes are 0 to 2",
        ),
        (
            lambda r: Image.fromarray(np.zeros((32, 41), np.uint8)).save(r / "labels/val/02.png"),
            "1 of 3 masks do not fit; .*val/02.png is 41 x 32 px, its image 40 x 32",
        ),
        (
            lambda r: Image.fromarray(np.zeros((32, 40, 3), np.uint8)).save(r / "labels/val/02.png"),
            "val/02.png has mode RGB, not one index per pixel: map its colours to indices, and save one index",
        ),
        (
            lambda r: [Image.new("L", (40, 32), 255).save(f) for f in (r / "labels/val").iterdir()],
            "no pixel of the 3 masks beside .*val/00.png is labelled: all are 255",
        ),
        (
            lambda r: (r / "labels/val/02.png").write_bytes(b"no picture"),
            "1 of 3 masks do not fit; .*02.png cannot be read as an image",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(
    make_config: Make, masked: Path, change: Callable[[Path], object], message: str
) -> None:
    change(masked)
    with pytest.raises(ValueError, match=message):
        read_data(make_config())


def test_suffixes_may_be_capitals(make_config: Make, masked: Path) -> None:
    for folder, suffix in (("images", "jpg"), ("labels", "png")):
        (masked / folder / "train" / f"03.{suffix}").rename(masked / folder / "train" / f"03.{suffix.upper()}")
    assert [file.name for file in read_data(make_config()).train.pairs[3]] == ["03.JPG", "03.PNG"]


def test_validation_images_are_not_trained_on(tmp_path: Path) -> None:
    write_published(tmp_path, "voc2012aug", 3, 2)
    (tmp_path / "ImageSets/Segmentation/aug.txt").write_text("train_001\nval_001\n")
    with pytest.raises(
        ValueError, match=r"lists 1 images both for training and validation, the first is .*val_001.jpg"
    ):
        read_published("voc2012aug", tmp_path, partial=True)


def test_a_folder_that_is_not_there_and_none_at_all_are_refused(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        read_data(make_config(data=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="pass --data, or --framework-config with a data set of its own"):
        read_data(make_config(data=None))


def write_published(root: Path, layout: str, train: int, val: int) -> None:
    """A small copy of a published layout; every mask holds label 1."""

    def picture(path: Path, mode: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (16, 12), 1).save(path)

    for part, count in (("train", train), ("val", val)):
        names = [f"{part}_{n:03d}" for n in range(count)]
        for name in names:
            if layout == "cityscapes":
                picture(root / f"leftImg8bit/{part}/town/{name}_leftImg8bit.png", "RGB")
                picture(root / f"gtFine/{part}/town/{name}_gtFine_labelTrainIds.png", "L")
            elif layout == "ade20k":
                folder = "training" if part == "train" else "validation"
                picture(root / f"images/{folder}/{name}.jpg", "RGB")
                picture(root / f"annotations/{folder}/{name}.png", "L")
            else:
                picture(root / f"JPEGImages/{name}.jpg", "RGB")
                picture(root / f"SegmentationClass/{name}.png", "L")
                picture(root / f"SegmentationClassAug/{name}.png", "L")
        if layout.startswith("voc"):
            lists = root / "ImageSets/Segmentation"
            lists.mkdir(parents=True, exist_ok=True)
            (lists / f"{part}.txt").write_text("\n".join(names))
            if part == "train":  # the augmented list has none of the plain one's
                (lists / "train.txt").write_text("\n".join(names[:1]))
                (lists / "aug.txt").write_text("\n".join(names[1:]))


@pytest.mark.parametrize(("layout", "num_train"), [("voc2012", 1), ("voc2012aug", 3), ("cityscapes", 3), ("ade20k", 3)])
def test_published_layouts_are_read_and_counted(tmp_path: Path, layout: str, num_train: int) -> None:
    write_published(tmp_path, layout, 3, 2)
    expected = PUBLISHED[layout].counts
    with pytest.raises(
        ValueError, match=f"holds {num_train} training and 2 validation images of {layout}, {expected[0]} and"
    ):
        read_published(layout, tmp_path, partial=False)
    data = read_published(layout, tmp_path, partial=True)
    assert (len(data.train.pairs), len(data.val.pairs)) == (num_train, 2)
    assert data.words == f"{layout} partial" and data.zero_ignored == (layout == "ade20k")
    assert len(data.classes) == {"v": 21, "c": 19, "a": 150}[layout[0]]
    init_default_scope("mmseg")
    assert len(DATASETS.build(data.train.config)) == num_train
    missing = data.val.pairs[0][1]
    Image.new("L", (16, 12), 200).save(missing)
    with pytest.raises(ValueError, match=f"1 of 2 masks do not fit; .*{missing.name} holds label 200 in 192 of"):
        read_published(layout, tmp_path, partial=True)
    missing.unlink()
    with pytest.raises(ValueError, match=f"there is no .*{missing.name}" if layout != "cityscapes" else "there is no"):
        read_published(layout, tmp_path, partial=True)


def test_a_layout_that_is_another_names_what_it_looked_for(tmp_path: Path) -> None:
    write_published(tmp_path, "ade20k", 1, 1)
    with pytest.raises(
        ValueError, match=r"there is no .*JPEGImages: .* does not have the layout of MMSegmentation's PascalVOC"
    ):
        read_published("voc2012", tmp_path, partial=True)
