from .bridge import SegBridge, build_bridge
from .config import SegmentConfig
from .predict import predict
from .task import finetune, resume

__all__ = ["SegBridge", "SegmentConfig", "build_bridge", "finetune", "predict", "resume"]
