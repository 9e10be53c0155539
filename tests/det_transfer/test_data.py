"""Reading boxes from disk, and refusing invalid ones by name."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools import mask as rle

from stillroom.det_transfer import DetectConfig
from stillroom.det_transfer.annotations import AnnotatedImage, Box, check_unit, clip_box, mask_fault, run_lengths
from stillroom.det_transfer.coco import sort_ids
from stillroom.det_transfer.config import check
from stillroom.det_transfer.data import PUBLISHED, clear_cache, read_data
from stillroom.det_transfer.detections import Detections, to_coco_results

Make = Callable[..., DetectConfig]
Change = Callable[[Callable[[dict], object]], Path]


def test_coco_is_read_as_annotated(make_config: Make, boxed: Path) -> None:
    data = read_data(make_config(detector="mask-rcnn"))
    assert data.classes == ("blue", "red"), "in the order of their ids"
    assert (len(data.train), len(data.val)) == (9, 4)
    content = json.loads((boxed / "annotations" / "val.json").read_text())
    row = data.val.rows[2]
    own = [entry for entry in content["annotations"] if entry["image_id"] == row.id]
    assert row.id == 102 and len(own) == len(row.boxes) > 0
    for entry, box, corners in zip(own, row.boxes, row.xyxy, strict=True):
        x, y, width, height = entry["bbox"]
        assert corners.tolist() == [x, y, x + width, y + height]
        assert box.label == {3: 0, 7: 1}[entry["category_id"]]
        assert rle.decode(box.mask).sum() == width * height


def test_voc_counts_pixels_from_one_and_includes_the_last(make_config: Make, voc: Path) -> None:
    config = make_config(data=voc, layout="voc")
    data = read_data(config)
    assert data.classes == ("blue", "red")
    assert (len(data.train), len(data.val)) == (6, 3)
    pixels = np.asarray(Image.open(voc / "JPEGImages" / "006.jpg"), dtype=int)
    row = data.val.rows[0]
    left, upper, right, lower = row.xyxy[0].astype(int)
    says = ElementTree.parse(voc / "Annotations" / "006.xml").findtext
    first, top, last, bottom = (int(says(f"object/bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax"))
    assert (left, upper, right, lower) == (first - 1, top - 1, last, bottom)
    assert (row.boxes[0].width, row.boxes[0].height) == (last - first + 1, bottom - top + 1)
    inside = pixels[upper:lower, left:right, 2]
    assert inside.mean() > 160, "the blue block"
    assert pixels[upper:lower, left - 2, 2].mean() < 120 and pixels[upper:lower, right + 1, 2].mean() < 120


def test_validation_images_that_are_training_images_are_counted(
    make_config: Make, boxed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(boxed / "images" / "train" / "02.png", boxed / "images" / "val" / "01.png")
    data = read_data(make_config())
    assert (data.train.record.in_train, data.val.record.in_train) == (None, 1)
    assert (
        f"warning: 1 of 4 images of {data.val.root} are training images too, byte for byte\n" in capsys.readouterr().err
    )


def test_train_and_val_take_any_files(make_config: Make, boxed: Path) -> None:
    parts = {name: (boxed / "annotations" / f"{name}.json", boxed / "images" / name) for name in ("train", "val")}
    found = read_data(make_config(data=None, **parts))
    assert found.train.record.fingerprint == read_data(make_config()).train.record.fingerprint
    with pytest.raises(ValueError, match="pass both --train and --val, or --data"):
        read_data(make_config(data=None, train=parts["train"]))
    with pytest.raises(ValueError, match="pass --data, or --train and --val"):
        read_data(make_config(data=None))


def first(content: dict) -> dict:
    return content["annotations"][0]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (
            lambda c: c["images"][3].update(file_name="gone.png"),
            r"1 of 9 images .* are missing, the first is .*gone.png",
        ),
        (
            lambda c: c["images"][1].update(width=65),
            r"1 of 9 images do not match .*; .*01.png is 64 x 48 px, .* states 65",
        ),
        (lambda c: c["images"][1].update(id=100), r"has 1 duplicate image ids, the first is 100"),
        (lambda c: c["annotations"][2].update(id=1), r"has 1 duplicate annotation ids, the first is 1"),
        (lambda c: c["categories"][0].update(id=3), r"has 1 duplicate category ids, the first is 3"),
        (lambda c: c["categories"][0].update(name="blue"), r"has 1 duplicate category names, the first is 'blue'"),
        (lambda c: c["images"][1].update(file_name="00.png"), r"has 1 duplicate images, the first is '00.png'"),
        (
            lambda c: first(c).update(category_id=9),
            r"1 boxes have the id of no category, the first is box 1 with category_id 9",
        ),
        (lambda c: first(c).update(image_id=9), r"1 boxes have the id of no image, the first is box 1 with image_id 9"),
        (lambda c: first(c).update(bbox=[3, 3, 0, 9]), r"1 bad boxes: box 1 of 00.png has no area: 0 x 9 px.*skip"),
        (lambda c: first(c).update(bbox=[50, 3, 20, 9]), r"1 bad boxes: box 1 of 00.png reaches 6 px beyond the image"),
        (lambda c: first(c).update(bbox=[64, 3, 1, 9]), r"1 bad boxes: box 1 of 00.png has no area inside the image"),
        (lambda c: first(c).update(bbox=[3, -1, 9, 1]), r"1 bad boxes: box 1 of 00.png has no area inside the image"),
        (lambda c: first(c).update(bbox=[40, 3, 1e-7, 9]), r"1 bad boxes: box 1 of 00.png has no area inside the im"),
        (lambda c: c["images"][1].update(file_name="./00.png"), r"has 1 duplicate images, the first is '00.png'"),
        (lambda c: c["images"][1].update(file_name="../a.png"), r"lists 1 images outside of .*, the first is ../a.png"),
        (lambda c: c["images"][1].update(file_name="/a.png"), r"lists 1 images outside of .*, the first is /a.png"),
        (lambda c: first(c).update(iscrowd="0"), r"box 1 has '0' as iscrowd, expected 0 or 1"),
        (lambda c: first(c).update(area=-4), r"train.json: box 1 has an area of -4"),
        (lambda c: first(c).update(area=float("nan")), r"box 1 has an area of nan"),
        (lambda c: first(c).update(area="7"), r"box 1 has an area of '7'"),
        (lambda c: first(c).update(bbox=[1, 2, float("nan"), 9]), r"box 1 of 00.png is not finite"),
        (
            lambda c: [
                entry.update(bbox=[v / side for v, side in zip(entry["bbox"], (64, 48, 64, 48), strict=True)])
                for entry in c["annotations"]
            ],
            r"in 9 of 9 images of .*train.json all boxes lie within 2 px .* box 1 of 00.png: .* fractions from 0 to 1",
        ),
        (
            lambda c: [
                entry.update(bbox=[x, y, x + w, y + h]) for entry in c["annotations"] for x, y, w, h in [entry["bbox"]]
            ],
            r"all \d+ areas of .*train.json are those of boxes given as left, upper, right, lower edge, expected ",
        ),
        (
            lambda c: [
                entry.update(bbox=[0.1, 0.2, 0.5, 0.5]) for entry in c["annotations"] if entry["image_id"] == 101
            ],
            r"in 1 of 9 images of .*train.json all boxes lie within 2 px .* of 01.png: they seem to be fractions",
        ),
        (lambda c: first(c).update(category_id=True), r"entry 0 of its annotations has True as category_id"),
        (lambda c: c["images"][1].update(width=10**30), r"01.png is 64 x 48 px, .* states 10{30} x 48"),
        (lambda c: c["images"][1].update(width=-64), r"01.png is 64 x 48 px, .* states -64 x 48"),
        (lambda c: first(c).update(bbox=[1, 2, 10**400, 9]), r"box 1 of 00.png is not finite"),
        (lambda c: first(c).update(area=10**400), r"box 1 has an area of inf"),
        (lambda c: c["images"][1].update(id="100"), r"has 1 duplicate image ids, the first is '100'"),
        (lambda c: c["images"][1].update(width=64.5), r"entry 1 of its images has 64.5 as width"),
        (lambda c: first(c).update(bbox=[1, 2, 3]), r"box 1 is \[1, 2, 3\], expected left, upper edge, width, height"),
        (lambda c: c["images"][3].update(file_name=7), r"entry 3 of its images has 7 as file_name"),
        (lambda c: c["images"][3].update(id=[7]), r"entry 3 of its images has \[7\] as id"),
        (lambda c: c["images"][3].update(width=None), r"entry 3 of its images has None as width"),
        (lambda c: first(c).pop("bbox"), r"entry 0 of its annotations has no bbox"),
        (lambda c: c.pop("categories"), r"is not in COCO's format: it has no list of categories"),
        (lambda c: c.update(images=[], annotations=[]), r"lists no images"),
        (lambda c: c.update(annotations=[]), r"none of the 9 training images in .* has a box"),
        (lambda c: c["categories"].append({"id": 9, "name": "x"}), r"have different categories, such as 'x' \(9\)"),
    ],
)
def test_errors_in_a_json_are_named(make_config: Make, change: Change, how: Callable, words: str) -> None:
    change(how)
    with pytest.raises(ValueError, match=words):
        read_data(make_config())


def test_validation_images_must_have_a_box(make_config: Make, boxed: Path) -> None:
    file = boxed / "annotations" / "val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    with pytest.raises(ValueError, match=r"none of the 4 validation images in .*val has a box"):
        read_data(make_config())


def test_the_fingerprint_covers_boxes_and_masks(make_config: Make, change: Change) -> None:
    config = make_config(detector="mask-rcnn")
    seen = {read_data(config).train.record.fingerprint}
    for how in (
        lambda c: first(c).update(category_id=7),
        lambda c: first(c).update(segmentation=[[40, 5, 50, 5, 50, 9]]),
        lambda c: first(c).update(bbox=[36, 4, 8, 8]),
        lambda c: first(c).update(area=30),
    ):
        change(how)
        clear_cache()
        seen.add(read_data(config).train.record.fingerprint)
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([1, 2, 5, 2, 5, 9], "is not a list of polygons of at least three points each"),
        ([[1, 2, 5, 2]], "is not a list of polygons"),
        ([[]], "is not a list of polygons"),
        ([[1, 2, 5, 2, 5, 9, 3]], "is not a list of polygons"),
        ([[1, 2, 5, 2, 5, float("nan")]], "is not a list of polygons"),
        ([[1, 2, 5, 2, 5, "9"]], "is not a list of polygons"),
        ([[1, 2, 5, 2, 5, 1e40]], "reaches beyond its image of 64 x 48 px by more than its size"),
        ([[1, 2, -65, 2, 5, 9]], "reaches beyond its image of 64 x 48 px by more than its size"),
        ({"counts": [0, 3071], "size": [48, 64]}, "is an RLE whose runs do not fill 64 x 48 px"),
        ({"counts": [-8, 3080], "size": [48, 64]}, "is an RLE whose runs do not fill"),
        ({"counts": [0.5, 3071.5], "size": [48, 64]}, "is an RLE whose runs do not fill"),
        ({"counts": "f02", "size": [48, 64]}, "is an RLE whose runs do not fill"),
        ({"counts": "", "size": [48, 64]}, "is an RLE whose runs do not fill"),
        ("a string", "is neither a list of polygons nor an RLE"),
        ({"counts": [0, 3072]}, "is an RLE of None, the image is 48 px high and 64 px wide"),
        ({"counts": [0, 3072], "size": [64, 48]}, r"is an RLE of \[64, 48\], the image is 48 px high"),
    ],
)
def test_invalid_masks_are_named_when_they_are_trained_on(
    make_config: Make, change: Change, mask: object, words: str
) -> None:
    change(lambda c: first(c).update(segmentation=mask))
    assert read_data(make_config()).train.rows[0].boxes[0].mask is None
    with pytest.raises(ValueError, match=rf"train.json: the mask of box 1 {words}"):
        read_data(make_config(detector="mask-rcnn"))


def test_run_lengths_decodes_a_compressed_mask() -> None:
    rng = np.random.default_rng(0)
    for number in range(30):
        drawn = np.asfortranarray(rng.random((37, 300)) < rng.random(), dtype=np.uint8)
        drawn[:, : 10 * number] = number % 2  # long runs, whose differences are negative
        compressed = rle.encode(drawn)
        changes = np.flatnonzero(np.diff(drawn.ravel(order="F"), prepend=0))
        assert run_lengths(compressed["counts"]) == np.diff([0, *changes, drawn.size]).tolist()
        assert mask_fault(compressed, 300, 37) is None
        assert mask_fault({**compressed, "counts": compressed["counts"][:-1].decode()}, 300, 37)


def test_areas_come_from_the_json_or_from_the_box(make_config: Make, change: Change) -> None:
    change(lambda c: (first(c).update(area=None), c["annotations"][1].update(area=250.5)))
    boxes = [box for row in read_data(make_config()).train.rows for box in row.boxes]
    assert boxes[0].area == boxes[0].width * boxes[0].height and boxes[1].area == 250.5


@pytest.mark.parametrize(
    ("area", "mask", "right"),
    [
        (0, None, 400),
        (1, None, 400),
        (900, None, 400),
        (5, None, 5),
        (400, [[4, 4, 24, 4, 4, 24]], 400),
        (401, [[4, 4, 24, 4, 4, 24]], 200),
        (50, [[4, 4, 24, 4, 4, 24]], 200),
        (400, {"counts": [0, 48, 3024], "size": [48, 64]}, 48),
        (0, {"counts": [3072], "size": [48, 64]}, 0),
        (10, {"counts": [0, 12, 3060], "size": [48, 64]}, 10),
    ],
)
def test_an_area_that_contradicts_its_mask_or_box_is_computed_anew(
    make_config: Make, change: Change, capsys: pytest.CaptureFixture[str], area: float, mask: object, right: float
) -> None:
    change(lambda c: first(c).update(bbox=[4, 4, 20, 20], area=area, segmentation=mask))
    data = read_data(make_config())
    assert data.train.rows[0].boxes[0].area == right
    said = capsys.readouterr().err
    assert (f"1 boxes of {data.train.root.parents[1]}" in said) == (area != right) == bool(data.notes)
    assert area == right or f"the first is box 1 with {area}: their areas were computed anew" in said


def test_areas_that_are_one_small_share_of_their_boxes_are_of_another_size(make_config: Make, change: Change) -> None:
    def shrink(content: dict) -> None:
        for entry in content["annotations"]:
            entry.update(segmentation=[], area=entry["bbox"][2] * entry["bbox"][3] / 4)

    change(shrink)
    data = read_data(make_config())
    assert all(box.area == box.width * box.height for row in data.train.rows for box in row.boxes)
    assert "their areas were computed anew" in data.notes[0]


def test_ids_may_be_strings(make_config: Make, change: Change, boxed: Path) -> None:
    before = read_data(make_config()).train
    texts = {100: "a1f", 101: "7"}

    def rename(content: dict) -> None:
        for image in content["images"]:
            image["id"] = texts.get(image["id"], str(image["id"]))
        for entry in content["annotations"]:
            entry.update(
                image_id=texts.get(entry["image_id"], entry["image_id"]), category_id=str(entry["category_id"])
            )

    change(rename)
    clear_cache()
    after = read_data(make_config()).train
    assert [row.boxes for row in after.rows] == [row.boxes for row in before.rows]
    assert [row.json_id for row in after.rows][:3] == ["a1f", "7", "102"]
    assert [row.id for row in after.rows] == list(range(1, 10)), "pycocotools sorts ids"
    found = Detections(boxes=np.ones((1, 4)), scores=np.ones(1), labels=np.zeros(1, dtype=int))
    rows = to_coco_results(after, [found] * 9, (3, 7))
    assert [(row["image_id"], row["category_id"]) for row in rows][:2] == [("a1f", 3), ("7", 3)]


def test_categories_with_string_ids_are_sorted_by_their_numbers() -> None:
    assert sort_ids(["10", "b", "9", 2, "a"]) == [2, "9", "10", "a", "b"]


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
def test_whole_floats_and_byte_order_marks_are_read(make_config: Make, change: Change, boxed: Path, mark: str) -> None:
    before = read_data(make_config()).train

    def widen(content: dict) -> None:
        for image in content["images"]:
            image.update(id=float(image["id"]), width=float(image["width"]), height=float(image["height"]))
        for entry in content["annotations"]:
            entry.update(category_id=float(entry["category_id"]))

    change(widen)
    file = boxed / "annotations" / "train.json"
    file.write_text(file.read_text(), encoding=mark)
    clear_cache()
    assert read_data(make_config()).train == before


@pytest.mark.parametrize("folder", ["images\\train\\", "..\\..\\media\\4\\", "C:\\me\\", "/home/me/", ".\\"])
def test_paths_of_other_machines_are_found_by_their_names(
    make_config: Make, change: Change, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    change(lambda c: [image.update(file_name=folder + image["file_name"]) for image in c["images"]])
    data = read_data(make_config())
    assert [row.file.name for row in data.train.rows][:2] == ["00.png", "01.png"]
    assert f"names 9 of 9 images by paths that are not below {data.train.root}" in capsys.readouterr().err


def test_a_windows_path_below_the_folder_is_ours(make_config: Make, change: Change, boxed: Path) -> None:
    change(lambda c: c["images"][1].update(file_name="sub\\00.png"))
    (boxed / "images" / "train" / "sub").mkdir()
    (boxed / "images" / "train" / "01.png").rename(boxed / "images" / "train" / "sub" / "00.png")
    assert read_data(make_config()).train.rows[1].file == boxed / "images" / "train" / "sub" / "00.png"


def test_names_with_percent_signs_are_decoded_where_no_file_has_them(
    make_config: Make, change: Change, boxed: Path
) -> None:
    change(lambda c: [image.update(file_name="a%20b" + image["file_name"]) for image in c["images"]])
    files = sorted((boxed / "images" / "train").glob("*.png"))
    for file in files:
        file.rename(file.with_name("a b" + file.name))
    files[0].with_name("a b00.png").rename(files[0].with_name("a%20b00.png"))
    names = [row.file.name for row in read_data(make_config()).train.rows]
    assert names[:2] == ["a%20b00.png", "a b01.png"]


def test_an_object_that_is_annotated_twice_is_said(
    make_config: Make, change: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    change(lambda c: c["annotations"].append(c["annotations"][0] | {"id": 999}))
    assert read_data(make_config()).notes == (
        "1 objects of the training images are annotated more than once, by the same box",
    )
    assert "note: 1 objects of the training images are annotated more than once" in capsys.readouterr().err


def test_unused_classes_and_classes_that_differ_by_case_are_said(
    make_config: Make, boxed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "val"):
        file = boxed / "annotations" / f"{part}.json"
        content = json.loads(file.read_text())
        content["categories"] += [{"id": 0, "name": "animals"}, {"id": 9, "name": "Red "}]
        file.write_text(json.dumps(content))
    data = read_data(make_config())
    said = capsys.readouterr().err
    for role in ("training", "validation"):
        assert f"2 of 4 classes have no box in the {role} images: animals, Red " in said
    assert "classes differ only by case or spaces, and are kept apart: 'red' and 'Red '" in said
    assert len(data.notes) == 3


def test_boxes_that_may_be_percentages_are_said(tmp_path: Path) -> None:
    def row(side: int) -> AnnotatedImage:
        box = Box(x=10.0, y=10.0, width=50.0, height=40.0, label=0, area=2000.0, name="box 1")
        return AnnotatedImage(id=1, file=Path("a.png"), width=side, height=side, boxes=(box,))

    (said,) = check_unit([row(500), row(1000)], tmp_path)
    assert "within 100 px of the corner of images of at least 500 px: if they are percentages" in said
    assert check_unit([row(300), row(1000)], tmp_path) == check_unit([], tmp_path) == []


@pytest.mark.parametrize(("height", "refused"), [(1, True), (3, True), (5, False)])
def test_images_too_thin_for_a_detector_are_named(
    make_config: Make, change: Change, boxed: Path, height: int, refused: bool
) -> None:
    Image.new("RGB", (400, height)).save(boxed / "images" / "train" / "strip.png")
    change(lambda c: c["images"].append({"id": 77, "file_name": "strip.png", "width": 400, "height": height}))
    words = r"1 images are too thin for a detector, the first is .*strip.png, 400 x \d px: .* --max-size 96"
    with pytest.raises(ValueError, match=words) if refused else nullcontext():
        read_data(make_config(keep_empty=True))


def test_skipped_boxes_are_named(make_config: Make, change: Change, capsys: pytest.CaptureFixture[str]) -> None:
    change(lambda c: first(c).update(bbox=[3, 3, 0, 9]))
    data = read_data(make_config(on_bad_box="skip"))
    assert data.train.left_out == ("box 1 of 00.png has no area: 0 x 9 px",)
    assert "left out: box 1 of 00.png has no area" in capsys.readouterr().err


def test_a_box_slightly_beyond_its_image_is_clipped(make_config: Make, change: Change) -> None:
    change(lambda c: first(c).update(bbox=[-0.5, 3, 65.2, 9]))
    row = read_data(make_config()).train.rows[0]
    assert row.xyxy[0].tolist() == [0, 3, 64, 12], "to be learned from"
    assert (row.boxes[0].x, row.boxes[0].width) == (-0.5, 65.2), "it is measured as it stands, as by anybody"
    change(lambda c: first(c).update(bbox=[-1, 3, 66, 9]))
    clear_cache()
    assert read_data(make_config()).train.rows[0].xyxy[0].tolist() == [0, 3, 64, 12], "by up to one whole pixel"


def test_a_box_inside_its_image_is_not_clipped() -> None:
    """Its right edge less its left one is not its width, to the last bit."""
    image = AnnotatedImage(id=1, file=Path("a.png"), width=64, height=48)
    box = Box(x=10.1, y=3.3, width=20.2, height=9.9, label=0, area=1.0, name="a box")
    assert (box.x + box.width) - box.x != box.width
    assert clip_box(box, image) is box


def move(voc: Path, by: float, scale: float = 1) -> None:
    """Change every coordinate of the boxes of a VOC folder."""
    for xml in (voc / "Annotations").iterdir():
        tree = ElementTree.parse(xml)
        for edge in (edge for box in tree.iter("bndbox") for edge in box):
            edge.text = str(float(edge.text or "") * scale + by)
        tree.write(xml)


def test_voc_boxes_that_are_fractions_are_named(make_config: Make, voc: Path) -> None:
    move(voc, 0, 1 / 64)
    with pytest.raises(ValueError, match=r"images of .*train.txt all boxes lie within 2 px .* fractions from 0 to 1"):
        read_data(make_config(data=voc, layout="voc"))


def test_voc_files_that_count_from_0_are_named(
    make_config: Make, voc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    move(voc, -1)
    xml = voc / "Annotations" / "002.xml"
    xml.write_text(re.sub(r"<xmin>[\d.]+<", "<xmin>0<", xml.read_text(), count=1))
    config = make_config(data=voc, layout="voc")
    words = r"1 of 6 XML files of \S*train.txt have a coordinate below 1, such as 002.xml: .* --voc-base 0"
    (note,) = read_data(config).notes
    assert re.search(words, note) and note in capsys.readouterr().err
    plain = read_data(replace(config, voc_base=1))
    assert not plain.notes
    zero = read_data(replace(config, voc_base=0))
    assert not zero.notes
    for ours, theirs in zip(zero.train.rows, plain.train.rows, strict=True):
        assert (ours.xyxy[:, 2:] == theirs.xyxy[:, 2:]).all()
    assert zero.train.rows[2].boxes[0].x == 0 and plain.train.rows[2].boxes[0].x == -1
    with pytest.raises(ValueError, match="--voc-base is about XML files, --layout is coco: leave it out"):
        check(make_config(voc_base=0), world_size=1, on_cpu=True)


def test_voc_names_the_file_of_a_size_of_zero_and_reads_difficult_in_words(make_config: Make, voc: Path) -> None:
    xml = voc / "Annotations" / "002.xml"
    text = xml.read_text()
    xml.write_text(re.sub("<difficult>[01]<", "<difficult>True<", text))
    config = make_config(data=voc, layout="voc")
    assert all(box.difficult for box in read_data(config).train.rows[2].boxes)
    xml.write_text(re.sub(r"<width>\d+<", "<width>0<", text))
    clear_cache()
    with pytest.raises(ValueError, match=r"002.xml states an image of 0 x \d+ px: write the size of .*002"):
        read_data(config)


@pytest.mark.parametrize("edge", ["xmax", "ymax"])
def test_a_line_is_not_a_box_in_voc(make_config: Make, voc: Path, edge: str) -> None:
    xml = voc / "Annotations" / "002.xml"
    tree = ElementTree.parse(xml)
    box = next(tree.iter("bndbox"))
    box.find(edge).text = box.find(edge.replace("max", "min")).text
    tree.write(xml)
    with pytest.raises(ValueError, match=r"1 bad boxes: \w+ 1 of 002.jpg has no area: 0 x 0 px"):
        read_data(make_config(data=voc, layout="voc"))


def test_crowds_and_empty_images_are_not_trained_on(
    make_config: Make, change: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    def crowd(content: dict) -> None:
        counts = {"size": [48, 64], "counts": [0, 48 * 64]}
        for entry in content["annotations"]:
            if entry["image_id"] == 100:
                entry.update(iscrowd=1, segmentation=counts)

    change(crowd)
    data = read_data(make_config())
    assert "1 of 9 training images have no box: pass --keep-empty to train on them" in capsys.readouterr().err
    assert len(data.train) == 8 and 100 not in {row.id for row in data.train.rows}
    assert len(read_data(make_config(keep_empty=True)).train) == 9


def test_broken_images_are_named(make_config: Make, boxed: Path) -> None:
    (boxed / "images" / "train" / "04.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 9 images do not match .*; .*04.png cannot be read as an image"):
        read_data(make_config())


def test_a_jpeg_rotated_by_its_exif_tag_is_named(make_config: Make, voc: Path) -> None:
    file = voc / "JPEGImages" / "002.jpg"
    image = Image.open(file)
    tags = image.getexif()
    tags[ExifTags.Base.Orientation] = 6
    image.save(file, exif=tags)
    with pytest.raises(ValueError, match=r"002.jpg is rotated by its EXIF tag, its boxes are not: save it upright"):
        read_data(make_config(data=voc, layout="voc"))


def test_a_file_name_may_begin_with_dots(make_config: Make, change: Change, boxed: Path) -> None:
    change(lambda c: c["images"][1].update(file_name="./..a.png"))
    (boxed / "images" / "train" / "01.png").rename(boxed / "images" / "train" / "..a.png")
    assert read_data(make_config()).train.rows[1].file.name == "..a.png"


def test_an_image_of_too_many_pixels_is_named(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(
        ValueError, match=r"9 of 9 images do not match .*; .*00.png cannot be read as an image: Image size"
    ):
        read_data(make_config())


def test_a_png_rotated_by_its_exif_tag_is_named(make_config: Make, boxed: Path) -> None:
    file = boxed / "images" / "train" / "02.png"
    image = Image.open(file)
    tags = image.getexif()
    tags[ExifTags.Base.Orientation] = 3
    image.save(file, exif=tags)
    with pytest.raises(ValueError, match=r"02.png is rotated by its EXIF tag"):
        read_data(make_config())


def test_a_class_that_no_training_image_has_is_named(make_config: Make, voc: Path) -> None:
    xml = voc / "Annotations" / "007.xml"
    xml.write_text(xml.read_text().replace(">blue<", ">bleu<"))
    with pytest.raises(ValueError, match=r"007.xml holds a 'bleu', which is not a class: expected blue, red"):
        read_data(make_config(data=voc, layout="voc"))


def test_irregular_voc_folders_are_read(make_config: Make, voc: Path) -> None:
    """A class list with its marks and a byte order mark, names with spaces, capital suffixes, no difficult flag."""
    (voc / "JPEGImages" / "001.jpg").rename(voc / "JPEGImages" / "001.JPG")
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        (voc / folder / f"002.{suffix}").rename(voc / folder / f"image 1.{suffix}")
    xml = voc / "Annotations" / "000.xml"
    xml.write_text(xml.read_text().replace("<difficult>0</difficult>", ""))
    xml = voc / "Annotations" / "001.xml"
    xml.write_text(xml.read_text().replace("<difficult>0</difficult>", "<difficult>1</difficult>"))
    (voc / "ImageSets" / "Main" / "train.txt").write_text("\ufeff000  1\n001 -1\nimage 1\n", encoding="utf-8")
    rows = read_data(make_config(data=voc, layout="voc")).train.rows
    assert [row.file.name for row in rows] == ["000.jpg", "001.JPG", "image 1.jpg"]
    assert [{box.difficult for box in row.boxes} for row in rows] == [{False}, {True}, {False}]


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("Annotations/002.xml", None, r"there is no .*002.xml, though its image is listed"),
        ("Annotations/002.xml", "<annotation>", r"002.xml is not valid XML"),
        (
            "Annotations/002.xml",
            "<?xml version='1.0' encoding='klingon'?><a/>",
            r"002.xml is not valid XML: unknown encoding",
        ),
        ("Annotations/002.xml", "<annotation><size/></annotation>", r"holds None as size/width, expected a number"),
        (
            "Annotations/002.xml",
            "<annotation><size><width>inf</width><height>9</height></size></annotation>",
            r"holds 'inf' as size/width, expected a number",
        ),
        ("ImageSets/Main/train.txt", "", r"train.txt lists no image"),
        ("ImageSets/Main/train.txt", "001\n001\n", r"has 1 duplicate images, the first is '001'"),
        ("ImageSets/Main/train.txt", None, r"there is no .*train.txt: .* is not in VOC's layout"),
        ("JPEGImages/001.jpg", None, r"1 of 6 images of .*train.txt are missing, the first is .*001.jpg"),
    ],
)
def test_errors_in_a_voc_folder_are_named(
    make_config: Make, voc: Path, file: str, text: str | None, words: str
) -> None:
    if text is None:
        (voc / file).unlink()
    else:
        (voc / file).write_text(text)
    with pytest.raises(ValueError, match=words):
        read_data(make_config(data=voc, layout="voc"))


def test_published_data_is_counted(make_config: Make, boxed: Path, voc: Path, tmp_path: Path) -> None:
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    for part in ("train", "val"):
        (coco / "annotations" / f"instances_{part}2017.json").write_text(
            (boxed / "annotations" / f"{part}.json").read_text()
        )
        (boxed / "images" / part).rename(coco / f"{part}2017")
    config = make_config(data=coco, layout="coco2017")
    with pytest.raises(ValueError, match=r"holds 9 training and 4 test images of coco2017, 118287 and 5000 were"):
        read_data(config)
    found = read_data(replace(config, partial=True))
    assert found.name == "coco2017 partial" and len(found.train) == 9
    file = coco / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    first(content).update(id=918, bbox=[3, 3, 1.03, 0])
    file.write_text(json.dumps(content))
    clear_cache()
    found = read_data(replace(config, partial=True))
    assert found.train.left_out == ("box 918 of 00.png has no area: 1.03 x 0 px",), "COCO's own, as published"
    content["annotations"][1].update(bbox=[3, 3, 0, 9])
    file.write_text(json.dumps(content))
    clear_cache()
    with pytest.raises(ValueError, match=r"has 1 bad boxes: box 2 of \d\d.png has no area: 0 x 9 px"):
        read_data(replace(config, partial=True))
    assert PUBLISHED["voc0712"] == (2501 + 2510 + 5717 + 5823, 4952)
    with pytest.raises(ValueError, match=r"there is no .*VOC2007"):
        read_data(make_config(data=voc, layout="voc0712"))


def test_voc_0712_trains_on_both_years_and_is_evaluated_on_the_test_set_of_2007(make_config: Make, voc: Path) -> None:
    root = voc.parent / "both"
    for xml in (voc / "Annotations").iterdir():
        xml.write_text(xml.read_text().replace(">blue<", ">cat<").replace(">red<", ">dog<"))
    for year, lists in (("VOC2007", {"trainval": "000\n001\n", "test": "006\n"}), ("VOC2012", {"trainval": "002\n"})):
        shutil.copytree(voc, root / year)
        for name, names in lists.items():
            (root / year / "ImageSets" / "Main" / f"{name}.txt").write_text(names)
    data = read_data(make_config(data=root, layout="voc0712", partial=True))
    assert [row.file.relative_to(root).as_posix() for row in data.train.rows] == [
        "VOC2007/JPEGImages/000.jpg",
        "VOC2007/JPEGImages/001.jpg",
        "VOC2012/JPEGImages/002.jpg",
    ]
    assert [row.file.name for row in data.val.rows] == ["006.jpg"]
    assert len(data.classes) == 20 and data.classes[data.val.rows[0].boxes[0].label] == "cat"


def test_boxes_without_area_in_the_blood_cells_are_named(make_config: Make, shared_data: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(shared_data / "bccd.zip").extractall(tmp_path)
    config = make_config(data=next(tmp_path.rglob("ImageSets")).parent, layout="voc")
    with pytest.raises(ValueError, match=r"bad boxes: RBC \d+ of BloodImage_00338.jpg has no area|BloodImage_00343"):
        read_data(config)
    data = read_data(replace(config, on_bad_box="skip"))
    assert (len(data.train), len(data.val)) == (205, 87)
    assert data.classes == ("Platelets", "RBC", "WBC")
