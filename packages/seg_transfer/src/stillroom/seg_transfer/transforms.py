"""Image and mask reading, and the augmentations of KDEP's segmentation recipe that MMSegmentation lacks."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from mmcv.transforms import BaseTransform, Resize
from mmseg.registry import TRANSFORMS

from stillroom.images.decode import load_image
from stillroom.seg_transfer.masks import read_mask

LONGEST = 32_766
"""Longest side that OpenCV rotates, pixels."""


def read_bgr(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read the pixels of an image as it is seen, in OpenCV's channel order.

    Raises:
        BrokenImageError: the image cannot be read, or is truncated.
    """
    return cv2.cvtColor(np.asarray(load_image(file)), cv2.COLOR_RGB2BGR)


@TRANSFORMS.register_module()
class LoadPicture(BaseTransform):
    """Read an image, and refuse a truncated one, which MMCV's reader would fill with grey."""

    def transform(self, results: dict) -> dict:
        """Read `img_path`.

        Raises:
            BrokenImageError: the image cannot be read, or is truncated.
        """
        image = read_bgr(Path(results["img_path"]))
        return results | {"img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}


@TRANSFORMS.register_module()
class LoadMask(BaseTransform):
    """Read a mask in its own bit depth, where MMSegmentation takes grey of 2 and 4 bits as Pillow spreads it."""

    def transform(self, results: dict) -> dict:
        """Read `seg_map_path`.

        Raises:
            ValueError: see `read_mask`.
        """
        mask = read_mask(Path(results["seg_map_path"]), zero_ignored=results["reduce_zero_label"])
        return results | {"gt_seg_map": mask, "seg_fields": [*results["seg_fields"], "gt_seg_map"]}


@TRANSFORMS.register_module()
class ScaleBy(BaseTransform):
    """Resize image and mask by a random factor of their size; a side stays between one pixel and `LONGEST`.

    Args:
        factors: smallest and largest.
    """

    def __init__(self, factors: tuple[float, float]) -> None:
        self.factors = factors

    def transform(self, results: dict) -> dict:
        """Draw the factor, and resize."""
        factor = float(np.random.uniform(*self.factors))
        height, width = results["img"].shape[:2]
        if min(height, width) * factor >= 1 and max(height, width) * factor <= LONGEST:
            return Resize(scale_factor=factor, keep_ratio=True)(results)
        width, height = (min(max(round(side * factor), 1), LONGEST) for side in (width, height))
        return Resize(scale=(width, height), keep_ratio=False)(results)


@TRANSFORMS.register_module()
class Blur(BaseTransform):
    """Blur some images with a 5 x 5 Gaussian.

    Args:
        share: fraction of the images, [0, 1].
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def transform(self, results: dict) -> dict:
        """Blur the image, or leave it, by a random draw."""
        if np.random.uniform() < self.share:
            results["img"] = cv2.GaussianBlur(results["img"], (5, 5), 0)
        return results
