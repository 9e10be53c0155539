"""Frozen evaluation of any backbone: exact k-NN."""

from stillroom.eval_ssl.config import KnnConfig
from stillroom.eval_ssl.evaluate import evaluate_knn
from stillroom.eval_ssl.features import FeatureSet, extract_features
from stillroom.eval_ssl.knn import knn_classify, retrieval_map
from stillroom.eval_ssl.monitor import monitor_knn
from stillroom.eval_ssl.neighbours import nearest_neighbours

__all__ = [
    "FeatureSet",
    "KnnConfig",
    "evaluate_knn",
    "extract_features",
    "knn_classify",
    "monitor_knn",
    "nearest_neighbours",
    "retrieval_map",
]
