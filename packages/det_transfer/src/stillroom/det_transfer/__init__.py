"""Student to object detection: Detectron2, or torchvision's detectors, started from our weights, asserted by tensor."""

from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.measure import measure, voc_ap
from stillroom.det_transfer.predict import predict
from stillroom.det_transfer.sweep import finetune, resume

__all__ = ["DetectConfig", "finetune", "measure", "predict", "resume", "voc_ap"]
