"""Backbones, their checkpoints and runs: the one package that all others share."""

from importlib import import_module
from typing import Any

import lazy_loader

# The names of __init__.pyi, each imported when it is first used, so that a command line starts without torch.
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_IN_IMAGES = ("BrokenImageError", "EvaluationView", "ImageDataset", "read_labelled", "read_unlabelled")


def __getattr__(name: str) -> Any:
    """Import a name; those that stillroom-images has since version 0.5 are found there."""
    return getattr(import_module("stillroom.images"), name) if name in _IN_IMAGES else _load(name)
