"""Frozen evaluation of any backbone: exact k-NN, linear probes, logistic regression, few shots."""

from stillroom.eval_ssl.config import FeaturesConfig, FewShotConfig, KnnConfig, LinearConfig, LogregConfig
from stillroom.eval_ssl.evaluation import evaluate
from stillroom.eval_ssl.features import FeatureSet, extract_features
from stillroom.eval_ssl.knn import knn_classify, retrieval_map
from stillroom.eval_ssl.logreg import few_shot, fit_logreg, logistic_regression
from stillroom.eval_ssl.monitor import monitor_knn
from stillroom.eval_ssl.neighbours import nearest_neighbours
from stillroom.eval_ssl.probe import Point, Recipe, linear_probe, train_probes

__all__ = [
    "FeatureSet",
    "FeaturesConfig",
    "FewShotConfig",
    "KnnConfig",
    "LinearConfig",
    "LogregConfig",
    "Point",
    "Recipe",
    "evaluate",
    "extract_features",
    "few_shot",
    "fit_logreg",
    "knn_classify",
    "linear_probe",
    "logistic_regression",
    "monitor_knn",
    "nearest_neighbours",
    "retrieval_map",
    "train_probes",
]
