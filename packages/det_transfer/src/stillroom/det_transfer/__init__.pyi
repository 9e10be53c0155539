from .config import DetectConfig
from .metrics import measure, voc_ap
from .predict import predict
from .task import finetune, resume

__all__ = ["DetectConfig", "finetune", "measure", "predict", "resume", "voc_ap"]
