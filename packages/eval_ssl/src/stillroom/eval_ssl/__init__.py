"""Frozen evaluation of any backbone: exact k-NN, linear probes."""

from stillroom.eval_ssl.config import KnnConfig, LinearConfig
from stillroom.eval_ssl.evaluate import evaluate_knn, evaluate_linear
from stillroom.eval_ssl.features import FeatureSet, extract_features
from stillroom.eval_ssl.knn import knn_classify, retrieval_map
from stillroom.eval_ssl.monitor import monitor_knn
from stillroom.eval_ssl.neighbours import nearest_neighbours
from stillroom.eval_ssl.probe import Point, Recipe, linear_probe, train_probes

__all__ = [
    "FeatureSet",
    "KnnConfig",
    "LinearConfig",
    "Point",
    "Recipe",
    "evaluate_knn",
    "evaluate_linear",
    "extract_features",
    "knn_classify",
    "linear_probe",
    "monitor_knn",
    "nearest_neighbours",
    "retrieval_map",
    "train_probes",
]
