"""The protocols, one per file: each is read top to bottom, from its flags to what is printed. Imports no torch."""

from stillroom.eval_ssl.config import EvaluationConfig
from stillroom.eval_ssl.protocols.features import FeaturesConfig
from stillroom.eval_ssl.protocols.few_shot import FewShotConfig
from stillroom.eval_ssl.protocols.knn import KnnConfig
from stillroom.eval_ssl.protocols.linear import LinearConfig
from stillroom.eval_ssl.protocols.logreg import LogregConfig

PROTOCOLS: dict[str, type[EvaluationConfig]] = {
    protocol.task: protocol for protocol in (KnnConfig, LinearConfig, LogregConfig, FewShotConfig, FeaturesConfig)
}
"""By the `task` of their results.json."""
