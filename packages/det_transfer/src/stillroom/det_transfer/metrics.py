"""How good a detector is: COCO's AP by pycocotools, and Pascal VOC's AP."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stillroom.det_transfer.annotations import Box, Images, as_coco
from stillroom.det_transfer.detections import Detections, as_results

IouType = Literal["bbox", "segm"]
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve numbers in pycocotools' order: s, m, l are objects below 32 x 32, up to 96 x 96, and larger, pixels."""
IOUS = range(50, 100, 5)
"""Percent at which boxes must overlap, as Detectron2 measures VOC."""


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
    if not images.without_masks and any(one.masks is not None for one in found):
        metrics |= {f"mask{name}": value for name, value in coco_ap(truth, rows, "segm").metrics.items()}
    metrics |= voc_metrics([rank(images, found, label) for label in range(len(classes))])
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
    """A class's average precision: the area under its curve (VOC 2010 on), and at eleven recalls (VOC 2007).

    nan where there is no object of the class.
    """

    area: float
    eleven: float


@dataclass(frozen=True)
class Ranked:
    """The detections of a class, the likeliest first.

    Args:
        objects: which one each overlaps most, of all images together; -1 where its image has none.
        overlaps: intersection over union with it.
        counted: of every object, whether it must be found.
    """

    objects: Int[np.ndarray, " n"]
    overlaps: Float[np.ndarray, " n"]
    counted: Bool[np.ndarray, " m"]


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
    return judge(rank(images, found, label), iou)


def voc_metrics(ranked: Sequence[Ranked]) -> dict[str, float]:
    """VOC's AP over the classes that occur, by both averages: at IoU 0.5, 0.75, and the mean of 0.5, 0.55, ... 0.95.

    Args:
        ranked: of each class.
    """
    metrics: dict[str, float] = {}
    occurring = [one for one in ranked if one.counted.any()]
    if not occurring:
        return metrics
    table = [[judge(one, percent / 100) for one in occurring] for percent in IOUS]
    for prefix, kind in (("VOC_", "area"), ("VOC07_", "eleven")):
        means = {at: float(np.mean([getattr(ap, kind) for ap in row])) for at, row in zip(IOUS, table, strict=True)}
        metrics |= {
            f"{prefix}AP": float(np.mean([*means.values()])), f"{prefix}AP50": means[50], f"{prefix}AP75": means[75]
        }  # fmt: skip
    return metrics


def rank(images: Images, found: Sequence[Detections], label: int) -> Ranked:
    """See `Ranked` and `voc_ap`."""
    wanted = [tuple(box for box in row.boxes if box.label == label) for row in images.rows]
    first = np.cumsum([0, *map(len, wanted)])
    places = [np.flatnonzero(one.labels == label) for one in found]
    of_image = np.repeat(np.arange(len(found)), [len(own) for own in places])
    scores = np.concatenate([one.scores[own] for one, own in zip(found, places, strict=True)])
    boxes = np.concatenate([one.boxes[own] for one, own in zip(found, places, strict=True)])
    objects, overlaps = np.full(len(scores), -1), np.zeros(len(scores))
    order = np.argsort(-scores, kind="stable")
    for place, (image, box) in enumerate(zip(of_image[order], boxes[order], strict=True)):
        if wanted[image]:
            own = overlap(box, wanted[image])
            objects[place], overlaps[place] = first[image] + own.argmax(), own.max()
    counted = np.asarray([counts(box) for own in wanted for box in own], dtype=bool)
    return Ranked(objects, overlaps, counted)


def judge(ranked: Ranked, iou: float) -> VocAp:
    """See `voc_ap`."""
    total = int(ranked.counted.sum())
    if total == 0:
        return VocAp(float("nan"), float("nan"))
    over = ranked.overlaps > iou
    claims = np.flatnonzero(over)
    claims = claims[ranked.counted[ranked.objects[claims]]]
    right, wrong = np.zeros(len(over)), (~over).astype(float)
    wrong[claims] = 1
    taken = claims[np.unique(ranked.objects[claims], return_index=True)[1]]
    right[taken], wrong[taken] = 1, 0
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
