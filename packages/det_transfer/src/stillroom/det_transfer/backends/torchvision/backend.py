"""torchvision's detectors as a backend; see `Backend`."""

import copy

import torch

from stillroom.backbone import Backbone
from stillroom.det_transfer.backends.torchvision.nets import build_detector
from stillroom.det_transfer.backends.torchvision.predict import load_predictor
from stillroom.det_transfer.backends.torchvision.train import train
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import DetectionData, read_data
from stillroom.runs import Run

__all__ = ["load_predictor", "preflight", "read", "train"]


def read(config: DetectConfig) -> DetectionData:
    """Read the images of a run; see `read_data`."""
    return read_data(config)


def preflight(config: DetectConfig, run: Run, data: DetectionData, backbone: Backbone) -> None:
    """Build the detector without memory for its weights; see `build_detector`."""
    with torch.device("meta"):
        build_detector(config, copy.deepcopy(backbone), len(data.classes))
