"""The objects that a detector finds in an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as rle

from stillroom.det_transfer.annotations import Images


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The objects found in one image, highest score first.

    Args:
        boxes: left, upper, right, lower edge, pixels of the image as it is on disk.
        scores: 0 to 1.
        labels: class index.
        masks: COCO's RLE of each, where the detector predicts masks.
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    masks: tuple[dict[str, Any], ...] | None = None

    def above(self, score: float) -> "Detections":
        """The detections with at least this score."""
        kept = np.flatnonzero(self.scores >= score)
        masks = None if self.masks is None else tuple(self.masks[index] for index in kept)
        return Detections(boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept], masks=masks)

    def to_coco(self, image_id: int | str, category_ids: Sequence[int | str] | None = None) -> list[dict[str, Any]]:
        """Convert to rows of COCO's results format.

        Args:
            image_id: COCO's id of the image.
            category_ids: COCO's id of each label; None: 1 and up.
        """
        rows: list[dict[str, Any]] = []
        for index, (left, upper, right, lower) in enumerate(self.boxes.tolist()):
            label = int(self.labels[index])
            row: dict[str, Any] = {
                "image_id": image_id,
                "category_id": label + 1 if category_ids is None else category_ids[label],
                "bbox": [left, upper, right - left, lower - upper],
                "score": float(self.scores[index]),
            }
            if self.masks is not None:
                row["segmentation"] = self.masks[index]
            rows.append(row)
        return rows


def encode_binary_mask(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """A binary mask as COCO's compressed RLE, in values that JSON can hold."""
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {**encoded, "counts": encoded["counts"].decode("ascii")}


def to_coco_results(
    images: Images, predictions: Sequence[Detections], category_ids: Sequence[int | str] | None = None
) -> list[dict[str, Any]]:
    """The detections in all images in COCO's results format; see `Detections.to_coco`.

    With `category_ids`, the images too have the ids of the data set's JSON.
    """
    rows: list[dict[str, Any]] = []
    for image, detections in zip(images.rows, predictions, strict=True):
        own = image.id if category_ids is None or image.json_id is None else image.json_id
        rows += detections.to_coco(own, category_ids)
    return rows
