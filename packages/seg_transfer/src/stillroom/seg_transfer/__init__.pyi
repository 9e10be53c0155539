from . import framework, heads, measure, nets, parallel, steady, transforms
from .bridge import SegBridge, build_bridge
from .config import SegmentConfig
from .predict import predict
from .sweep import finetune, resume

__all__ = [
    "SegBridge",
    "SegmentConfig",
    "build_bridge",
    "finetune",
    "framework",
    "heads",
    "measure",
    "nets",
    "parallel",
    "predict",
    "resume",
    "steady",
    "transforms",
]
