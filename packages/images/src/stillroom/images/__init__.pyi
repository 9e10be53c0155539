from .decode import BrokenImageError
from .files import ImageFiles, read_labelled, read_unlabelled
from .loaders import ImageDataset
from .source import Source, SourceError
from .view import EvaluationView

__all__ = [
    "BrokenImageError",
    "EvaluationView",
    "ImageDataset",
    "ImageFiles",
    "Source",
    "SourceError",
    "read_labelled",
    "read_unlabelled",
]
