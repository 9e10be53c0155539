"""How good a segmentation is: MMSegmentation's IoU, with the numbers of each class."""

from collections.abc import Sequence

import torch
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from torch import Tensor

IOU = "IoU/"
"""Before a class's name: the metric of it."""


@METRICS.register_module()
class ClassIoU(IoUMetric):
    """MMSegmentation's metric, as fractions and not rounded, each class's IoU beside the means.

    mIoU and mAcc are means over the classes that occur; `mIoU_foreground` leaves out the first class where its name is
    `background`.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        """From areas summed over all images; MMSegmentation's own table is logged."""
        super().compute_metrics(results)
        intersect, union, _, label = (torch.stack(parts).sum(dim=0).double() for parts in zip(*results, strict=True))
        return from_areas(intersect, union, label, self.dataset_meta["classes"])


def from_areas(intersect: Tensor, union: Tensor, label: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Metrics from pixel counts per class.

    Args:
        intersect: (k,) pixels of the class that were called so.
        union: (k,) pixels of the class, or called so.
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
