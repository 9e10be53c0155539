"""Configs of small evaluations, for tests of protocols and of the life cycle that they share."""

from pathlib import Path

from stillroom.eval_ssl import KnnConfig, LinearConfig
from stillroom.eval_ssl.config import EvaluationConfig


def small_config(train: Path, test: Path, out: Path, **changes) -> KnnConfig:
    """1-NN and 5-NN of a random net, without figures."""
    settings = {
        "checkpoint": ("random:cifar/resnet20",),
        "train": train,
        "test": test,
        "out": out,
        "k": (1, 5),
        "size": 16,
        "workers": 0,
        "device": "cpu",
        "figures": False,
    }
    return KnnConfig(**(settings | changes))


def config_like(config: EvaluationConfig, kind: type, **changes):
    """A config of another protocol, on the same checkpoint and images."""
    names = ("checkpoint", "train", "test", "out", "size", "workers", "figures", "device")
    return kind(**({name: getattr(config, name) for name in names} | changes))


def linear_config(config: EvaluationConfig, **changes) -> LinearConfig:
    """A linear probe of two learning rates and a few epochs."""
    return config_like(config, LinearConfig, **({"epochs": 5, "lrs": (0.01, 1e-9), "weight_decays": (0.0,)} | changes))
