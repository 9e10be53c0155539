from .checkpoint import load_checkpoint, load_heads, save_checkpoint
from .features import Backbone, Features, weights_sha256
from .image_files import ImageFiles, read_labelled, read_unlabelled
from .images import BrokenImageError, EvaluationView, Normalize
from .initial import load_backbone
from .loaders import ImageDataset
from .manifest import CheckpointError, Data, Head, Manifest, Teacher, verify_checkpoint
from .registry import build_backbone, list_backbones, replace_input
from .results import Results, format_table, read_results, write_results
from .run import Run, RunDirectory
from .spec import BackboneSpec, InputSpec, Level, Licence

__all__ = [
    "Backbone",
    "BackboneSpec",
    "BrokenImageError",
    "CheckpointError",
    "Data",
    "EvaluationView",
    "Features",
    "Head",
    "ImageDataset",
    "ImageFiles",
    "InputSpec",
    "Level",
    "Licence",
    "Manifest",
    "Normalize",
    "Results",
    "Run",
    "RunDirectory",
    "Teacher",
    "build_backbone",
    "format_table",
    "list_backbones",
    "load_backbone",
    "load_checkpoint",
    "load_heads",
    "read_labelled",
    "read_results",
    "read_unlabelled",
    "replace_input",
    "save_checkpoint",
    "verify_checkpoint",
    "weights_sha256",
    "write_results",
]
