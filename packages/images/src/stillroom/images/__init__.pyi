from .decode import BrokenImageError
from .files import read_labelled, read_unlabelled
from .loaders import ImageDataset
from .source import Source, SourceError
from .view import EvaluationView

__all__ = [
    "BrokenImageError",
    "EvaluationView",
    "ImageDataset",
    "Source",
    "SourceError",
    "read_labelled",
    "read_unlabelled",
]
