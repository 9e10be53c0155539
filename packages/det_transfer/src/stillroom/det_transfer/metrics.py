"""Detection metrics: COCO's AP by pycocotools, and Pascal VOC's AP."""

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

from stillroom.det_transfer.annotations import Box, Images, to_coco_dataset
from stillroom.det_transfer.detections import Detections, to_coco_results

IouType = Literal["bbox", "segm"]
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve numbers in pycocotools' order: s, m, l are objects below 32 x 32, up to 96 x 96, and larger, pixels."""
VOC_IOUS = range(50, 100, 5)
"""Thresholds of the intersection over union, percent, as Detectron2 evaluates VOC."""


@dataclass(frozen=True, kw_only=True)
class DetectionMetrics:
    """The metrics of a detector.

    Args:
        metrics: fractions by name; without an entry for object sizes that do not occur.
        per_class: AP of each class that occurs.
        precision: for each class that occurs, precision at 101 recalls from 0 to 1 and IoU 0.5.
    """

    metrics: dict[str, float]
    per_class: dict[str, float]
    precision: dict[str, Float[np.ndarray, " r"]]


def compute_metrics(images: Images, predictions: Sequence[Detections], classes: Sequence[str]) -> DetectionMetrics:
    """Compute COCO's and VOC's metrics of a detector.

    Args:
        images: with their true boxes.
        predictions: the detections in each image, in the same order.
        classes: names, in the order of the labels.
    """
    truth, rows = to_coco_dataset(images, classes), to_coco_results(images, predictions)
    boxes = coco_ap(truth, rows, "bbox")
    metrics = dict(boxes.metrics)
    if not images.boxes_without_mask and any(detections.masks is not None for detections in predictions):
        metrics |= {f"mask{name}": value for name, value in coco_ap(truth, rows, "segm").metrics.items()}
    metrics |= voc_metrics([rank_detections(images, predictions, label) for label in range(len(classes))])
    return DetectionMetrics(metrics=metrics, per_class=boxes.per_class, precision=boxes.precision)


def coco_ap(truth: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], kind: IouType) -> DetectionMetrics:
    """Compute COCO's metrics with pycocotools.

    Args:
        truth: the annotations in COCO's format.
        rows: the detections in COCO's results format.
        kind: IoU of boxes or of masks.

    Reference: Lin et al., Microsoft COCO, ECCV 2014.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints tables of its own
        predictions = {**truth, "annotations": to_coco_annotations(rows, kind)}
        evaluation = COCOeval(index_coco(truth), index_coco(predictions), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = {name: float(value) for name, value in zip(NAMES, evaluation.stats, strict=True) if value > -1}
    table = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU 0.5 to 0.95, recall, class; all sizes, 100 boxes
    names = {category["id"]: category["name"] for category in truth["categories"]}
    per_class, precision = {}, {}
    for index, category in enumerate(evaluation.params.catIds):
        of_class = table[:, :, index]
        if (of_class > -1).any():
            per_class[names[category]] = float(of_class[of_class > -1].mean())
            precision[names[category]] = of_class[0]
    return DetectionMetrics(metrics=metrics, per_class=per_class, precision=precision)


def index_coco(content: Mapping[str, Any]) -> COCO:
    """Build pycocotools' index of a data set in memory; its own constructor takes files only."""
    coco = COCO()
    coco.dataset = dict(content)
    coco.createIndex()
    return coco


def to_coco_annotations(rows: Sequence[Mapping[str, Any]], kind: IouType = "bbox") -> list[dict[str, Any]]:
    """Convert results to annotations in COCO's format: with ids, and the areas of boxes or of masks."""
    return [
        {
            **row,
            "id": number,
            "iscrowd": 0,
            "area": float(rle.area(row["segmentation"])) if kind == "segm" else row["bbox"][2] * row["bbox"][3],
        }
        for number, row in enumerate(rows, start=1)
    ]


@dataclass(frozen=True)
class VocAp:
    """Average precision of a class; nan where no object of the class occurs.

    Args:
        area: area under the precision-recall curve (VOC 2010 and later).
        eleven: mean precision at eleven recalls (VOC 2007).
    """

    area: float
    eleven: float


@dataclass(frozen=True)
class RankedDetections:
    """The detections of a class in all images, highest score first, matched to the objects of the class.

    Args:
        objects: index, over all images together, of the object that each detection overlaps most; -1 where its image
            has none.
        overlaps: intersection over union with that object.
        counted: for every object, whether it counts; see `is_counted`.
    """

    objects: Int[np.ndarray, " n"]
    overlaps: Float[np.ndarray, " n"]
    counted: Bool[np.ndarray, " m"]


def voc_ap(images: Images, predictions: Sequence[Detections], label: int, iou: float = 0.5) -> VocAp:
    """Compute the average precision of a class as Pascal VOC defines it.

    In the order of their scores, each detection takes the object that it overlaps most. Above `iou`, it is a true
    positive the first time and a false positive once the object is taken; it is ignored where the object is difficult
    (or a crowd, which VOC does not have).

    Args:
        images: with their true boxes.
        predictions: the detections in each image, in the same order.
        label: class index.
        iou: intersection over union that a detection must exceed.

    Reference: Everingham et al., The Pascal Visual Object Classes Challenge: A Retrospective, IJCV 2015, section 2.2.
    """
    return average_precision(rank_detections(images, predictions, label), iou)


def voc_metrics(ranked: Sequence[RankedDetections]) -> dict[str, float]:
    """Average VOC's AP over the classes that occur, by both definitions: IoU 0.5, 0.75, and the mean of 0.5 to 0.95.

    Args:
        ranked: of each class.
    """
    metrics: dict[str, float] = {}
    occurring = [of_class for of_class in ranked if of_class.counted.any()]
    if not occurring:
        return metrics
    table = [[average_precision(of_class, percent / 100) for of_class in occurring] for percent in VOC_IOUS]
    for prefix, kind in (("VOC_", "area"), ("VOC07_", "eleven")):
        rows = zip(VOC_IOUS, table, strict=True)
        means = {percent: float(np.mean([getattr(ap, kind) for ap in row])) for percent, row in rows}
        metrics[f"{prefix}AP"] = float(np.mean([*means.values()]))
        metrics[f"{prefix}AP50"], metrics[f"{prefix}AP75"] = means[50], means[75]
    return metrics


def rank_detections(images: Images, predictions: Sequence[Detections], label: int) -> RankedDetections:
    """Rank the detections of a class over all images, and match each to the object that it overlaps most."""
    objects_in = [tuple(box for box in row.boxes if box.label == label) for row in images.rows]
    first_object = np.cumsum([0, *map(len, objects_in)])
    selected = [np.flatnonzero(detections.labels == label) for detections in predictions]
    image_of = np.repeat(np.arange(len(predictions)), [len(indices) for indices in selected])
    pairs = list(zip(predictions, selected, strict=True))
    scores = np.concatenate([detections.scores[indices] for detections, indices in pairs])
    boxes = np.concatenate([detections.boxes[indices] for detections, indices in pairs])
    objects, overlaps = np.full(len(scores), -1), np.zeros(len(scores))
    order = np.argsort(-scores, kind="stable")
    for rank, (image, box) in enumerate(zip(image_of[order], boxes[order], strict=True)):
        if objects_in[image]:
            ious = box_iou(box, objects_in[image])
            objects[rank], overlaps[rank] = first_object[image] + ious.argmax(), ious.max()
    counted = np.asarray([is_counted(box) for boxes_of_image in objects_in for box in boxes_of_image], dtype=bool)
    return RankedDetections(objects, overlaps, counted)


def average_precision(ranked: RankedDetections, iou: float) -> VocAp:
    """Compute the average precision of ranked detections; see `voc_ap`."""
    total = int(ranked.counted.sum())
    if total == 0:
        return VocAp(float("nan"), float("nan"))
    over = ranked.overlaps > iou
    claims = np.flatnonzero(over)
    claims = claims[ranked.counted[ranked.objects[claims]]]
    true, false = np.zeros(len(over)), (~over).astype(float)
    false[claims] = 1
    taken = claims[np.unique(ranked.objects[claims], return_index=True)[1]]
    true[taken], false[taken] = 1, 0
    num_true, num_false = true.cumsum(), false.cumsum()
    return average_curve(num_true / total, num_true / np.maximum(num_true + num_false, 1))


def is_counted(box: Box) -> bool:
    """Whether an object counts: it is neither difficult nor a crowd."""
    return not (box.difficult or box.crowd)


def box_iou(box: Float[np.ndarray, "4"], others: Sequence[Box]) -> Float[np.ndarray, " n"]:
    """Intersection over union of a box (left, upper, right, lower edge) with others."""
    if not others:
        return np.zeros(0)
    x, y, width, height = np.asarray([(o.x, o.y, o.width, o.height) for o in others], dtype=float).T
    common_width = np.minimum(box[2], x + width) - np.maximum(box[0], x)
    common_height = np.minimum(box[3], y + height) - np.maximum(box[1], y)
    common = common_width.clip(min=0) * common_height.clip(min=0)
    return common / ((box[2] - box[0]) * (box[3] - box[1]) + width * height - common)


def average_curve(recall: Float[np.ndarray, " n"], precision: Float[np.ndarray, " n"]) -> VocAp:
    """Average a precision-recall curve by both definitions, with the best precision at each recall or above."""
    recall, precision = np.concatenate(([0.0], recall, [1.0])), np.concatenate(([0.0], precision, [0.0]))
    best = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(np.diff(recall))
    area = float(((recall[steps + 1] - recall[steps]) * best[steps + 1]).sum())
    tenths = [best[recall >= level].max(initial=0.0) for level in np.arange(0.0, 1.1, 0.1)]
    return VocAp(area, float(np.mean(tenths)))
