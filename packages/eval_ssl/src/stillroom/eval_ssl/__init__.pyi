from .config import FeaturesConfig, FewShotConfig, KnnConfig, LinearConfig, LogregConfig
from .evaluation import evaluate
from .features import FeatureSet, extract_features
from .knn import knn_classify, retrieval_map
from .logreg import few_shot, fit_logreg, logistic_regression
from .monitor import monitor_knn
from .neighbours import nearest_neighbours
from .probe import Recipe, linear_probe, train_probes
from .settings import Point

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
