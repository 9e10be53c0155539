"""Image reading, and the augmentations of KDEP's segmentation recipe that MMSegmentation lacks."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from mmcv.transforms import BaseTransform, Resize
from mmseg.registry import TRANSFORMS

from stillroom.backbone.images import load_image


def read_bgr(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read the pixels of an image, in OpenCV's channel order.

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
class ScaleBy(BaseTransform):
    """Resize image and mask by a random factor of their size.

    Args:
        factors: smallest and largest.
    """

    def __init__(self, factors: tuple[float, float]) -> None:
        self.factors = factors

    def transform(self, results: dict) -> dict:
        """Draw the factor, and resize."""
        return Resize(scale_factor=float(np.random.uniform(*self.factors)), keep_ratio=True)(results)


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
