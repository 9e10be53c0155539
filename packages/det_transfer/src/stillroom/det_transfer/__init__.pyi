from .config import DetectConfig
from .metrics import compute_metrics, voc_ap
from .predict import predict
from .task import finetune, resume

__all__ = ["DetectConfig", "compute_metrics", "finetune", "predict", "resume", "voc_ap"]
