from .comparison import report
from .config import Point
from .evaluation import evaluate
from .features import FeatureSet, FeatureSets, extract_features
from .logreg import few_shot, fit_logreg, logistic_regression
from .monitor import monitor_knn
from .neighbours import nearest_neighbours
from .probe import Recipe, linear_probe, train_probes
from .protocols.features import FeaturesConfig
from .protocols.few_shot import FewShotConfig
from .protocols.knn import KnnConfig
from .protocols.legacy_simreg import LegacySimregConfig, LegacySimregKnnConfig
from .protocols.linear import LinearConfig
from .protocols.logreg import LogregConfig
from .voting import knn_classify, retrieval_map

__all__ = [
    "FeatureSet",
    "FeatureSets",
    "FeaturesConfig",
    "FewShotConfig",
    "KnnConfig",
    "LegacySimregConfig",
    "LegacySimregKnnConfig",
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
    "report",
    "retrieval_map",
    "train_probes",
]
