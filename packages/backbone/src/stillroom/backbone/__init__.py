"""What a backbone is, how it is stored, rebuilt, fed and run: the one package that all others share."""

from stillroom.backbone.checkpoint import load_checkpoint, load_heads, save_checkpoint, verify_checkpoint
from stillroom.backbone.features import Backbone, Features, weights_sha256
from stillroom.backbone.images import (
    BrokenImageError,
    EvaluationView,
    ImageFiles,
    Normalize,
    read_labelled,
    read_unlabelled,
)
from stillroom.backbone.loading import ImageDataset
from stillroom.backbone.manifest import CheckpointError, Data, Head, Manifest, Teacher
from stillroom.backbone.registry import build_backbone, list_backbones, load_backbone, replace_input
from stillroom.backbone.results import Results, format_table, read_results, write_results
from stillroom.backbone.run import Run, RunDirectory
from stillroom.backbone.spec import BackboneSpec, InputSpec, Level, Licence

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
