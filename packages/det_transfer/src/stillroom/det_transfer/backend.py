"""What a backend of detection offers, and what it hands back when it has trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import nn

from stillroom.backbone import Backbone, Run
from stillroom.backbone.bridge import Bridge
from stillroom.det_transfer.annotations import Images
from stillroom.det_transfer.config import BackendName, DetectConfig
from stillroom.det_transfer.data import DetectionData
from stillroom.det_transfer.detections import Detections

Predictor = Callable[[Path], Detections]
"""A detector that was trained: image file -> what it finds."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained detector.

    Args:
        model: the whole of it.
        bridge: to our backbone in it.
        seconds: of training, over all lives of the run.
        find: the objects in every image.
    """

    model: nn.Module
    bridge: Bridge
    seconds: float
    find: Callable[[Images], list[Detections]]


@runtime_checkable
class Backend(Protocol):
    """A module that trains detectors."""

    def read(self, config: DetectConfig) -> DetectionData:
        """The images of a run."""

    def look_ahead(self, config: DetectConfig, run: Run, data: DetectionData, backbone: Backbone) -> None:
        """Refuse, before anything is written, a backbone that the detector does not take."""

    def train(self, config: DetectConfig, run: Run, data: DetectionData, backbone: Backbone, go_on: bool) -> Trained:
        """From the beginning, or from the run's last state."""

    def load_predictor(self, config: DetectConfig, backbone: Backbone, num_classes: int, run: Run) -> Predictor:
        """The detector of a run that is done."""


def find_backend(name: BackendName) -> Backend:
    """A backend, imported when it is asked for.

    Raises:
        ValueError: Detectron2 is asked for and is not installed.
    """
    if name == "torchvision":
        from stillroom.det_transfer.with_torchvision import train as with_torchvision  # noqa: PLC0415

        return with_torchvision
    from stillroom.det_transfer.with_detectron2 import train as with_detectron2  # noqa: PLC0415

    return with_detectron2
