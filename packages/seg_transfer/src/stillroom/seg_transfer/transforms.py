"""Augmentations of KDEP's segmentation recipe that MMSegmentation does not have."""

import cv2
import numpy as np
from mmcv.transforms import BaseTransform, Resize
from mmseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ScaleBy(BaseTransform):
    """Resize image and mask by a factor of their own size.

    Args:
        factors: smallest and largest.
    """

    def __init__(self, factors: tuple[float, float]) -> None:
        self.factors = factors

    def transform(self, results: dict) -> dict:
        """Draw the factor and resize."""
        return Resize(scale_factor=float(np.random.uniform(*self.factors)), keep_ratio=True)(results)


@TRANSFORMS.register_module()
class Blur(BaseTransform):
    """Blur some images with a 5 x 5 Gaussian.

    Args:
        share: of the images, [0, 1].
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def transform(self, results: dict) -> dict:
        """Draw whether, and blur."""
        if np.random.uniform() < self.share:
            results["img"] = cv2.GaussianBlur(results["img"], (5, 5), 0)
        return results
