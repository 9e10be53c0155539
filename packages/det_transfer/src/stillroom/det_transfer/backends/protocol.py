"""The contract of a detection backend, and the detector that it hands back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import nn

from stillroom.backbone import Backbone
from stillroom.convert.bridge import Bridge
from stillroom.det_transfer.annotations import Images
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import DetectionData
from stillroom.det_transfer.detections import Detections
from stillroom.runs import Run

Predictor = Callable[[Path], Detections]
"""A trained detector: image file -> its detections."""


@dataclass(frozen=True, kw_only=True)
class TrainedDetector:
    """A trained detector.

    Args:
        model: the whole detector.
        bridge: key rules between our backbone and the model.
        seconds: training time, from the first step on and across resumes.
        predict: images -> the detections in each, in the same order.
        notes: sentences about the detector, for results.json.
    """

    model: nn.Module
    bridge: Bridge
    seconds: float
    predict: Callable[[Images], list[Detections]]
    notes: tuple[str, ...] = ()


@runtime_checkable
class Backend(Protocol):
    """A module that trains detectors: `backends/detectron2/backend.py`, `backends/torchvision/backend.py`."""

    def read(self, config: DetectConfig) -> DetectionData:
        """Read and validate the images and boxes of a run."""

    def preflight(self, config: DetectConfig, run: Run, data: DetectionData, backbone: Backbone) -> None:
        """Refuse a backbone that the detector cannot take, before anything is written."""

    def train(
        self, config: DetectConfig, run: Run, data: DetectionData, backbone: Backbone, resume: bool
    ) -> TrainedDetector:
        """Train from the initial weights, or from the run's last state."""

    def load_predictor(self, config: DetectConfig, backbone: Backbone, num_classes: int, run: Run) -> Predictor:
        """Load the detector of a finished run."""
