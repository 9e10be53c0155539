"""Average precision against pycocotools on files, and worked by hand."""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stillroom.det_transfer import DetectConfig
from stillroom.det_transfer.annotations import AnnotatedImage, Box, Images
from stillroom.det_transfer.coco import box_name
from stillroom.det_transfer.data import read_data
from stillroom.det_transfer.detections import Detections, to_coco_results
from stillroom.det_transfer.metrics import NAMES, compute_metrics, to_coco_annotations, voc_ap


def guesses(images: Images, seed: int, masks: bool = False) -> list[Detections]:
    """True boxes, some moved, some of another class, and false ones."""
    rng, found = np.random.default_rng(seed), []
    for row in images.rows:
        true = row.xyxy.astype(float) + rng.normal(0, 1.5, (len(row.labels), 4))
        false = np.sort(rng.uniform(0, 47, (3, 2, 2)), axis=1).reshape(3, 4) + np.asarray((0, 0, 1, 1))
        boxes = np.concatenate([true, true + rng.normal(0, 4, true.shape), false])
        labels = np.concatenate([row.labels, row.labels, rng.integers(0, 2, 3)])
        scores = np.sort(rng.uniform(0, 1, len(boxes)))[::-1].copy()
        order = rng.permutation(len(boxes))
        rles = tuple(row.boxes[int(k) % len(row.boxes)].mask for k in order) if masks else None
        found.append(Detections(boxes=boxes[order], scores=scores, labels=labels[order], masks=rles))
    return found


def by_pycocotools(truth: Path, results: list[dict], kind: str, folder: Path) -> np.ndarray:
    """The twelve numbers by pycocotools from two files."""
    file = folder / "results.json"
    file.write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(str(file)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("seed", [0, 1])
def test_coco_ap_equals_pycocotools_on_files(
    make_config: Callable[..., DetectConfig], boxed: Path, tmp_path: Path, seed: int
) -> None:
    truth = boxed / "annotations" / "val.json"
    content = json.loads(truth.read_text())
    content["annotations"][0].update(iscrowd=1)  # what is found in it counts nothing
    content["annotations"][1]["bbox"][0] = 64.9 - content["annotations"][1]["bbox"][2]  # beyond the image
    truth.write_text(json.dumps(content))
    data = read_data(make_config(detector="mask-rcnn"))
    enlarged = {box_name(entry["id"]): 1100.0 for entry in content["annotations"][2:]}  # middle-sized, whatever the box
    for entry in content["annotations"][2:]:
        entry["area"] = 1100.0
    truth.write_text(json.dumps(content))  # after it was read: the reader corrects areas that contradict their boxes
    rows = [
        replace(row, boxes=tuple(replace(box, area=enlarged.get(box.name, box.area)) for box in row.boxes))
        for row in data.val.rows
    ]
    val = replace(data.val, rows=tuple(rows))
    found = guesses(val, seed, masks=True)
    measured = compute_metrics(val, found, data.classes)
    results = to_coco_results(val, found, data.category_ids)
    for row in results:
        row["segmentation"] = {**row["segmentation"], "counts": row["segmentation"]["counts"].decode()}
    for kind, prefix in (("bbox", ""), ("segm", "mask")):
        expected = by_pycocotools(truth, results, kind, tmp_path)
        assert 0.05 < expected[0] < 1, "it is neither nothing nor everything"
        for name, value in zip(NAMES, expected, strict=True):
            if value > -1:
                assert measured.metrics[prefix + name] == pytest.approx(value, abs=1e-9), name
            else:
                assert prefix + name not in measured.metrics
    assert measured.metrics["AP"] == pytest.approx(np.mean(list(measured.per_class.values())), abs=1e-12)
    assert measured.precision["red"].shape == (101,)


def test_no_detections_give_zero(make_config: Callable[..., DetectConfig]) -> None:
    data = read_data(make_config())
    nothing = Detections(boxes=np.zeros((0, 4)), scores=np.zeros(0), labels=np.zeros(0, dtype=int))
    measured = compute_metrics(data.val, [nothing] * len(data.val), data.classes)
    assert measured.metrics["AP"] == measured.metrics["VOC_AP50"] == measured.metrics["VOC07_AP50"] == 0
    assert measured.per_class == {"blue": 0, "red": 0}


def test_masks_are_evaluated_only_for_detectors_that_predict_them(make_config: Callable[..., DetectConfig]) -> None:
    data = read_data(make_config(detector="mask-rcnn"))
    nothing = Detections(boxes=np.zeros((0, 4)), scores=np.zeros(0), labels=np.zeros(0, dtype=int), masks=())
    assert compute_metrics(data.val, [nothing] * len(data.val), data.classes).metrics["maskAP"] == 0
    blind = guesses(data.val, 0)
    assert "maskAP" not in compute_metrics(data.val, blind, data.classes).metrics


def image(number: int, *boxes: tuple[float, float, float, float, bool]) -> AnnotatedImage:
    own = tuple(
        Box(
            x=float(x), y=float(y), width=float(w), height=float(h), label=0, difficult=hard, area=float(w * h), name=""
        )
        for x, y, w, h, hard in boxes
    )
    return AnnotatedImage(id=number, file=Path(f"{number}.jpg"), width=100, height=100, boxes=own)


def seen(*boxes: tuple[float, float, float, float, float]) -> Detections:
    rows = np.asarray(boxes, dtype=float).reshape(-1, 5)
    return Detections(boxes=rows[:, :4], scores=rows[:, 4], labels=np.zeros(len(rows), dtype=int))


def test_areas_of_results_are_of_boxes_or_of_masks() -> None:
    plane = np.zeros((20, 20), np.uint8)
    plane[2:5, 3:7] = 1
    row = {
        "image_id": 1,
        "category_id": 1,
        "bbox": [3.0, 2.0, 10.0, 5.0],
        "segmentation": rle.encode(np.asfortranarray(plane)),
    }
    assert to_coco_annotations([row])[0]["area"] == 50
    assert to_coco_annotations([row], "segm")[0]["area"] == 12


def test_voc_ap_worked_by_hand() -> None:
    """Three objects. In the order of scores: right, the same one again (wrong), nothing there (wrong), right."""
    images = Images(
        root=Path(),
        rows=(image(1, (0, 0, 10, 10, False), (50, 50, 10, 10, False)), image(2, (20, 20, 10, 10, False))),
    )
    found = [
        seen((0, 0, 10, 10, 0.9), (0, 0, 10, 11, 0.8), (80, 80, 90, 90, 0.7)),
        seen((20, 20, 30, 29, 0.6)),
    ]
    ap = voc_ap(images, found, 0)
    # recall 1/3 at precision 1, recall 2/3 at 2/4
    assert ap.area == pytest.approx(1 / 3 * 1 + 1 / 3 * 0.5)
    assert ap.eleven == pytest.approx((4 * 1 + 3 * 0.5) / 11)  # recalls 0 to 0.3, then 0.4 to 0.6


def test_vocs_numbers_are_means_over_classes_and_overlaps(make_config: Callable[..., DetectConfig]) -> None:
    data = read_data(make_config())
    found = guesses(data.val, 0)
    metrics = compute_metrics(data.val, found, data.classes).metrics
    for prefix, kind in (("VOC", "area"), ("VOC07", "eleven")):
        table = {
            percent: np.mean([getattr(voc_ap(data.val, found, label, percent / 100), kind) for label in (0, 1)])
            for percent in range(50, 100, 5)
        }
        assert metrics[f"{prefix}_AP"] == pytest.approx(np.mean(list(table.values())), abs=1e-12)
        assert (metrics[f"{prefix}_AP50"], metrics[f"{prefix}_AP75"]) == (table[50], table[75])
        assert 0 < table[75] < table[50] < 1


def test_difficult_objects_count_neither_way() -> None:
    rows = (image(1, (0, 0, 10, 10, True), (50, 50, 10, 10, False)),)
    found = [seen((0, 0, 10, 10, 0.9), (0, 0, 10, 10, 0.8), (50, 50, 60, 60, 0.7))]
    assert voc_ap(Images(root=Path(), rows=rows), found, 0).area == 1
    crowd = (replace(rows[0], boxes=(replace(rows[0].boxes[0], difficult=False, crowd=True), rows[0].boxes[1])),)
    assert voc_ap(Images(root=Path(), rows=crowd), found, 0).area == 1
    only = (image(1, (0, 0, 10, 10, True)),)
    assert np.isnan(voc_ap(Images(root=Path(), rows=only), [seen((0, 0, 10, 10, 0.9))], 0).area)


@pytest.mark.parametrize(("shift", "right"), [(3.32, True), (3.34, False)])
def test_an_overlap_must_exceed_one_half(shift: float, right: bool) -> None:
    """IoU of a 10 x 10 box moved by s is (10 - s) / (10 + s): one half at 10 / 3."""
    rows = (image(1, (0, 0, 10, 10, False)),)
    ap = voc_ap(Images(root=Path(), rows=rows), [seen((shift, 0, 10 + shift, 10, 0.9))], 0)
    assert ap.area == float(right)


def test_scores_are_ranked_over_all_images() -> None:
    rows = (image(1, (0, 0, 10, 10, False)), image(2, (0, 0, 10, 10, False)))
    wrong_first: Sequence[Detections] = [seen((60, 60, 70, 70, 0.5), (0, 0, 10, 10, 0.4)), seen((0, 0, 10, 10, 0.9))]
    assert voc_ap(Images(root=Path(), rows=rows), wrong_first, 0).area == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_figures_are_drawn(make_config: Callable[..., DetectConfig], tmp_path: Path) -> None:
    from stillroom.det_transfer.figures import draw_precision, draw_sheet

    data = read_data(make_config(detector="mask-rcnn"))
    found = guesses(data.val, 0, masks=True)
    draw_sheet(tmp_path / "sheet.png", data.val, found, data.classes, "a sheet")
    draw_precision(tmp_path / "curve.png", compute_metrics(data.val, found, data.classes), "a curve")
    for name in ("sheet.png", "curve.png"):
        assert min(Image.open(tmp_path / name).size) > 300
