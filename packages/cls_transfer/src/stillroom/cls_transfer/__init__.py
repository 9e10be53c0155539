"""Fine-tune a distilled backbone for image classification, or train a supervised one."""

from stillroom.cls_transfer.config import ClassifyConfig
from stillroom.cls_transfer.model import Classifier
from stillroom.cls_transfer.predict import load_classifier, predict
from stillroom.cls_transfer.sweep import finetune, resume

__all__ = ["Classifier", "ClassifyConfig", "finetune", "load_classifier", "predict", "resume"]
