"""What a detector says of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as rle

from stillroom.det_transfer.annotations import Images


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The objects found in one image, likeliest first.

    Args:
        boxes: left, upper, right, lower edge, pixels of the image as it is on disk.
        scores: 0 to 1.
        labels: index of the class.
        masks: COCO's RLE of each, where the detector finds masks.
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    masks: tuple[dict[str, Any], ...] | None = None

    def above(self, score: float) -> "Detections":
        """Those of at least this score."""
        kept = np.flatnonzero(self.scores >= score)
        masks = None if self.masks is None else tuple(self.masks[place] for place in kept)
        return Detections(boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept], masks=masks)

    def rows(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """In COCO's format of results.

        Args:
            image_id: of the image.
            category_ids: of the labels; None: 1 and up.
        """
        found: list[dict[str, Any]] = []
        for place, (left, upper, right, lower) in enumerate(self.boxes.tolist()):
            label = int(self.labels[place])
            row: dict[str, Any] = {
                "image_id": image_id, "category_id": label + 1 if category_ids is None else category_ids[label],
                "bbox": [left, upper, right - left, lower - upper], "score": float(self.scores[place]),
            }  # fmt: skip
            if self.masks is not None:
                row["segmentation"] = self.masks[place]
            found.append(row)
        return found


def encode_plane(plane: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """A mask as COCO's RLE, which JSON can hold."""
    found = rle.encode(np.asfortranarray(plane, dtype=np.uint8))
    return {**found, "counts": found["counts"].decode("ascii")}


def as_results(
    images: Images, found: Sequence[Detections], category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """All of them in COCO's format of results; see `Detections.rows`."""
    return [row for image, one in zip(images.rows, found, strict=True) for row in one.rows(image.id, category_ids)]
