"""Intersection over union, against a count by hand and MMSegmentation's own."""

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample

from stillroom.seg_transfer.metrics import ClassIoU, from_areas

CLASSES = ("background", "a", "b", "never")


def samples() -> list[dict]:
    """Three images with ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(3):
        truth = torch.randint(0, 3, (1, 8, 9), generator=generator)
        truth[0, 0] = 255
        answer = torch.randint(0, 3, (1, 8, 9), generator=generator)
        sample = SegDataSample(gt_sem_seg=PixelData(data=truth), pred_sem_seg=PixelData(data=answer))
        found.append(sample.to_dict())
    return found


def test_the_metric_is_a_count_of_pixels_and_mmsegmentations_unrounded() -> None:
    data = samples()
    results = []
    for metric in (ClassIoU(), IoUMetric()):
        metric.dataset_meta = {"classes": CLASSES}
        metric.process({}, data)
        results.append(metric.compute_metrics(metric.results))
    ours, theirs = results
    truth = np.concatenate([d["gt_sem_seg"]["data"].numpy().ravel() for d in data])
    answer = np.concatenate([d["pred_sem_seg"]["data"].numpy().ravel() for d in data])[truth != 255]
    truth = truth[truth != 255]
    iou = [((truth == k) & (answer == k)).sum() / ((truth == k) | (answer == k)).sum() for k in range(3)]
    accuracy = [((truth == k) & (answer == k)).sum() / (truth == k).sum() for k in range(3)]
    assert [ours[f"IoU/{name}"] for name in CLASSES[:3]] == pytest.approx(iou, abs=1e-12)
    assert "IoU/never" not in ours, "a class that nobody has and nobody answers has no IoU"
    assert ours["mIoU"] == pytest.approx(np.mean(iou), abs=1e-12)
    assert ours["mIoU_foreground"] == pytest.approx(np.mean(iou[1:]), abs=1e-12)
    assert ours["mAcc"] == pytest.approx(np.mean(accuracy), abs=1e-12)
    assert ours["aAcc"] == pytest.approx((truth == answer).mean(), abs=1e-12)
    for name in ("mIoU", "mAcc", "aAcc"):
        assert theirs[name] == pytest.approx(100 * ours[name], abs=0.005)


def test_classes_without_a_background_have_no_foreground_mean() -> None:
    ones = torch.ones(2).double()
    assert "mIoU_foreground" not in from_areas(ones, ones, ones, ["road", "sky"])
