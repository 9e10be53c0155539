from .alignment import AlignedTarget, PowerTemperatureScaling, SvdAlignment
from .alignment_file import build_alignment, import_kdep_alignment, load_alignment
from .auto import plan
from .auto_config import AutoConfig
from .config import DistillConfig
from .distances import distance
from .fit import FitPass, fit_alignment
from .heads import build_head
from .moments import Moments
from .nets import Students, Teachers
from .slots import KdepView, StrongView, Svd, SvdPts, WeakView
from .teacher import build_teacher
from .train import distill, resume

__all__ = [
    "AlignedTarget",
    "AutoConfig",
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
    "plan",
    "resume",
]
