"""Fine-tune a distilled backbone for image classification, or train a supervised one."""

from stillroom.cls_transfer.config import ClassifyConfig
from stillroom.cls_transfer.model import Classifier
from stillroom.cls_transfer.train import finetune, resume

__all__ = ["Classifier", "ClassifyConfig", "finetune", "resume"]
