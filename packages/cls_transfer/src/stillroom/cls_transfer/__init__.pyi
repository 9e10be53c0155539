from .config import ClassifyConfig
from .model import Classifier
from .predict import load_classifier, predict
from .task import finetune, resume

__all__ = ["Classifier", "ClassifyConfig", "finetune", "load_classifier", "predict", "resume"]
