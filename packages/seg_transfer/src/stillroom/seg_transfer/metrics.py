"""Intersection over union (IoU): MMSegmentation's metric, with the IoU of each class."""

from collections.abc import Sequence

import torch
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from torch import Tensor

IOU = "IoU/"
"""Prefix of the metric of a class, before the class's name."""
UNDEFINED = "0 of 0: the validation masks hold no pixel of these classes, and none is predicted"
"""Why a mean of this metric is NaN."""


@METRICS.register_module()
class ClassIoU(IoUMetric):
    """MMSegmentation's metric as fractions, not rounded, with each class's IoU beside the means.

    mIoU and mAcc are means over the classes that occur. `mIoU_foreground` leaves out the first class if it is named
    `background`.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the metrics from areas summed over all images; MMSegmentation's own table is logged."""
        super().compute_metrics(results)
        intersect, union, _, label = (torch.stack(parts).sum(dim=0).double() for parts in zip(*results, strict=True))
        return from_areas(intersect, union, label, self.dataset_meta["classes"])


def from_areas(intersect: Tensor, union: Tensor, label: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Compute metrics from pixel counts per class.

    Args:
        intersect: (k,) pixels of each of the k classes that are predicted as it.
        union: (k,) pixels that are of the class, or predicted as it.
        label: (k,) pixels of the class.
        classes: k names.
    """
    iou, accuracy = intersect / union, intersect / label
    metrics = {
        "mIoU": float(iou.nanmean()),
        "mAcc": float(accuracy.nanmean()),
        "aAcc": float(intersect.sum() / label.sum()),
    }
    if classes[0] == "background":
        metrics["mIoU_foreground"] = float(iou[1:].nanmean())
    occur = {name: float(value) for name, value, area in zip(classes, iou, union, strict=True) if area > 0}
    return metrics | {f"{IOU}{name}": value for name, value in occur.items()}
