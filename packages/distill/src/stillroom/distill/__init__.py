"""Turn a big pretrained vision model into a small backbone, without labels."""

from stillroom.distill.alignment import AlignedTarget, PowerTemperatureScaling, SvdAlignment
from stillroom.distill.alignment_file import build_alignment, import_kdep_alignment, load_alignment
from stillroom.distill.config import DistillConfig, Students, Teachers
from stillroom.distill.distances import distance
from stillroom.distill.fit import FitPass, fit_alignment
from stillroom.distill.heads import build_head
from stillroom.distill.moments import Moments
from stillroom.distill.slots import Svd, SvdPts
from stillroom.distill.teacher import build_teacher
from stillroom.distill.train import distill, resume
from stillroom.distill.views import KdepView, StrongView, WeakView

__all__ = [
    "AlignedTarget",
    "DistillConfig",
    "FitPass",
    "KdepView",
    "Moments",
    "PowerTemperatureScaling",
    "StrongView",
    "Students",
    "Svd",
    "SvdAlignment",
    "SvdPts",
    "Teachers",
    "WeakView",
    "build_alignment",
    "build_head",
    "build_teacher",
    "distance",
    "distill",
    "fit_alignment",
    "import_kdep_alignment",
    "load_alignment",
    "resume",
]
