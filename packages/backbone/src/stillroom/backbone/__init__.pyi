from .checkpoint import load_checkpoint, load_heads, save_checkpoint
from .features import Backbone, Features, weights_sha256
from .initial import load_backbone
from .manifest import CheckpointError, Data, Head, Manifest, Teacher, verify_checkpoint
from .normalize import Normalize
from .registry import build_backbone, list_backbones, replace_input
from .spec import BackboneSpec, InputSpec, Level, Licence

__all__ = [
    "Backbone",
    "BackboneSpec",
    "CheckpointError",
    "Data",
    "Features",
    "Head",
    "InputSpec",
    "Level",
    "Licence",
    "Manifest",
    "Normalize",
    "Teacher",
    "build_backbone",
    "list_backbones",
    "load_backbone",
    "load_checkpoint",
    "load_heads",
    "replace_input",
    "save_checkpoint",
    "verify_checkpoint",
    "weights_sha256",
]
