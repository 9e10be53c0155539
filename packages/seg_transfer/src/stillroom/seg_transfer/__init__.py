"""Student to semantic segmentation: MMSegmentation on MMEngine, started from our weights, asserted tensor by tensor."""

from stillroom.seg_transfer import framework  # first: it says in one sentence what is not installed
from stillroom.seg_transfer.bridge import SegBridge, build_bridge
from stillroom.seg_transfer.config import SegmentConfig
from stillroom.seg_transfer.predict import predict
from stillroom.seg_transfer.sweep import finetune, resume

# What a config of MMEngine names is known once these are imported: its `custom_imports` is this package.
from stillroom.seg_transfer import heads, measure, nets, parallel, steady, transforms  # isort: skip

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
