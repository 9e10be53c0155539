"""How images are read, and augmentations of KDEP's segmentation recipe that MMSegmentation does not have."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from mmcv.transforms import BaseTransform, Resize
from mmseg.registry import TRANSFORMS

from stillroom.backbone.images import load_image


def read_bgr(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an image, in OpenCV's order.

    Raises:
        BrokenImageError: it cannot be read, or not to its end.
    """
    return cv2.cvtColor(np.asarray(load_image(file)), cv2.COLOR_RGB2BGR)


@TRANSFORMS.register_module()
class LoadPicture(BaseTransform):
    """Read an image, and refuse one that is cut short: MMCV's reader gives what there is, grey from there on."""

    def transform(self, results: dict) -> dict:
        """Read `img_path`.

        Raises:
            BrokenImageError: it cannot be read, or not to its end.
        """
        image = read_bgr(Path(results["img_path"]))
        return results | {"img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}


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
