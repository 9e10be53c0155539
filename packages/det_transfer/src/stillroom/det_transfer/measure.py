"""How good a detector is: COCO's AP by pycocotools, and Pascal VOC's AP."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stillroom.det_transfer.annotations import Box, Images, as_coco
from stillroom.det_transfer.detections import Detections, as_results

IouType = Literal["bbox", "segm"]
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve numbers in pycocotools' order: s, m, l are objects below 32 x 32, up to 96 x 96, and larger, pixels."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured.

    Args:
        metrics: fractions; a size of which there is no object has no entry.
        per_class: AP of each class that occurs.
        precision: of each class that occurs, (101,) at recalls 0 to 1 and IoU 0.5.
    """

    metrics: dict[str, float]
    per_class: dict[str, float]
    precision: dict[str, Float[np.ndarray, " r"]]


def measure(images: Images, found: Sequence[Detections], classes: Sequence[str]) -> Measured:
    """All numbers of a detector.

    Args:
        images: with their true boxes.
        found: in each image, in the same order.
        classes: names.
    """
    truth, rows = as_coco(images, classes), as_results(images, found)
    measured = coco_ap(truth, rows, "bbox")
    metrics = dict(measured.metrics)
    if images.has_masks and any(one.masks is not None for one in found):
        metrics |= {f"mask{name}": value for name, value in coco_ap(truth, rows, "segm").metrics.items()}
    by_class = [voc_ap(images, found, label) for label in range(len(classes))]
    for name, values in (("VOC_AP50", [p.area for p in by_class]), ("VOC07_AP50", [p.eleven for p in by_class])):
        if not np.isnan(values).all():
            metrics[name] = float(np.nanmean(values))
    return Measured(metrics=metrics, per_class=measured.per_class, precision=measured.precision)


def coco_ap(truth: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], kind: IouType) -> Measured:
    """COCO's numbers, by pycocotools.

    Args:
        truth: in COCO's format.
        rows: in its format of results.
        kind: IoU of boxes or of masks.

    Reference: Lin et al., Microsoft COCO, ECCV 2014.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # its tables; ours follow
        evaluation = COCOeval(index(truth), index({**truth, "annotations": as_annotations(rows, kind)}), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = {name: float(value) for name, value in zip(NAMES, evaluation.stats, strict=True) if value > -1}
    table = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU 0.5 to 0.95, recall, class; all sizes, 100 boxes
    names = {category["id"]: category["name"] for category in truth["categories"]}
    per_class, precision = {}, {}
    for place, category in enumerate(evaluation.params.catIds):
        own = table[:, :, place]
        if (own > -1).any():
            per_class[names[category]] = float(own[own > -1].mean())
            precision[names[category]] = own[0]
    return Measured(metrics=metrics, per_class=per_class, precision=precision)


def index(content: Mapping[str, Any]) -> COCO:
    """pycocotools' view of COCO's format, which it reads from files only."""
    coco = COCO()
    coco.dataset = dict(content)
    coco.createIndex()
    return coco


def as_annotations(rows: Sequence[Mapping[str, Any]], kind: IouType = "bbox") -> list[dict[str, Any]]:
    """Results as annotations in COCO's format: with ids, and areas of boxes or of masks."""
    return [
        {
            **row, "id": number, "iscrowd": 0,
            "area": float(rle.area(row["segmentation"])) if kind == "segm" else row["bbox"][2] * row["bbox"][3],
        }
        for number, row in enumerate(rows, start=1)
    ]  # fmt: skip


@dataclass(frozen=True)
class VocAp:
    """A class's average precision at IoU 0.5: the area under its curve (VOC 2010 on), and at eleven recalls (VOC 2007).

    nan where there is no object of the class.
    """

    area: float
    eleven: float


def voc_ap(images: Images, found: Sequence[Detections], label: int, iou: float = 0.5) -> VocAp:
    """Average precision as Pascal VOC counts it.

    The likeliest detection first, each takes the object that it overlaps most. Over `iou`, it is right the first time,
    wrong when the object is taken, and counts nothing where that is difficult (or a crowd, which VOC does not have).

    Args:
        images: with their true boxes.
        found: in each image, in the same order.
        label: the class.
        iou: intersection over union that a detection must exceed.

    Reference: Everingham et al., The Pascal Visual Object Classes Challenge: A Retrospective, IJCV 2015, section 2.2.
    """
    wanted = [tuple(box for box in row.boxes if box.label == label) for row in images.rows]
    total = sum(counts(box) for boxes in wanted for box in boxes)
    if total == 0:
        return VocAp(float("nan"), float("nan"))
    places = [np.flatnonzero(one.labels == label) for one in found]
    of_image = np.repeat(np.arange(len(found)), [len(own) for own in places])
    scores = np.concatenate([one.scores[own] for one, own in zip(found, places, strict=True)])
    boxes = np.concatenate([one.boxes[own] for one, own in zip(found, places, strict=True)])
    taken: list[Bool[np.ndarray, " n"]] = [np.zeros(len(own), dtype=bool) for own in wanted]
    right, wrong = np.zeros(len(scores)), np.zeros(len(scores))
    for rank, place in enumerate(np.argsort(-scores, kind="stable")):
        image = of_image[place]
        overlaps = overlap(boxes[place], wanted[image])
        best = int(overlaps.argmax()) if len(overlaps) else -1
        if best < 0 or overlaps[best] <= iou:
            wrong[rank] = 1
        elif counts(wanted[image][best]):
            right[rank], wrong[rank] = not taken[image][best], taken[image][best]
            taken[image][best] = True
    rights, wrongs = right.cumsum(), wrong.cumsum()
    return average(rights / total, rights / np.maximum(rights + wrongs, 1))


def counts(box: Box) -> bool:
    """Whether an object must be found: not one that is difficult, nor a crowd."""
    return not (box.difficult or box.crowd)


def overlap(box: Float[np.ndarray, "4"], others: Sequence[Box]) -> Float[np.ndarray, " n"]:
    """Intersection over union of a box (left, upper, right, lower edge) with others."""
    if not others:
        return np.zeros(0)
    x, y, width, height = np.asarray([(o.x, o.y, o.width, o.height) for o in others], dtype=float).T
    across = np.minimum(box[2], x + width) - np.maximum(box[0], x)
    down = np.minimum(box[3], y + height) - np.maximum(box[1], y)
    common = across.clip(min=0) * down.clip(min=0)
    return common / ((box[2] - box[0]) * (box[3] - box[1]) + width * height - common)


def average(recall: Float[np.ndarray, " n"], precision: Float[np.ndarray, " n"]) -> VocAp:
    """Both averages of a curve; the precision at a recall is the best one at that recall or above."""
    recall, precision = np.concatenate(([0.0], recall, [1.0])), np.concatenate(([0.0], precision, [0.0]))
    best = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(np.diff(recall))
    area = float(((recall[steps + 1] - recall[steps]) * best[steps + 1]).sum())
    tenths = [best[recall >= level].max(initial=0.0) for level in np.arange(0.0, 1.1, 0.1)]
    return VocAp(area, float(np.mean(tenths)))
