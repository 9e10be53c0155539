"""Turn a big pretrained vision model into a small backbone, without labels."""

from stillroom.distill.alignment import AlignedTarget, PowerTemperatureScaling, SvdAlignment
from stillroom.distill.alignment_file import import_kdep_alignment, load_alignment
from stillroom.distill.config import DistillConfig, Net, Svd, SvdPts
from stillroom.distill.fit import fit_alignment
from stillroom.distill.moments import Moments
from stillroom.distill.train import distill, resume
from stillroom.distill.views import KdepView

__all__ = [
    "AlignedTarget",
    "DistillConfig",
    "KdepView",
    "Moments",
    "Net",
    "PowerTemperatureScaling",
    "Svd",
    "SvdAlignment",
    "SvdPts",
    "distill",
    "fit_alignment",
    "import_kdep_alignment",
    "load_alignment",
    "resume",
]
