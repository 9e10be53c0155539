"""Settings that cannot work, found before anything is extracted; and what follows from those that can."""

import importlib
import math
from itertools import product
from typing import Any

import torch

from stillroom.backbone import ImageFiles
from stillroom.eval_ssl.config import (
    FeatureConfig,
    FeaturesConfig,
    FewShotConfig,
    KnnConfig,
    LinearConfig,
    LogregConfig,
)
from stillroom.eval_ssl.export import import_pyarrow
from stillroom.eval_ssl.knn import check_temperature
from stillroom.eval_ssl.logreg import check_penalties, draw_shots
from stillroom.eval_ssl.neighbours import check_k
from stillroom.eval_ssl.probe import Point, check_grid, check_share, split_stratified

STANDARD_K = (1, 5, 10, 20, 100, 200)
_UMAP_IMAGES = 20


def check_settings(config: FeatureConfig, train: ImageFiles, test: ImageFiles | None) -> None:
    """Refuse settings that cannot work, before the hours of extraction.

    Raises:
        ValueError: in one sentence.
    """
    labels = torch.tensor(train.labels or ())
    match config:
        case KnnConfig():
            check_temperature(config.temperature)
            check_k(numbers_of_neighbours(config, len(train) - (test is None)), len(train) - (test is None))
            above_zero(config, "memory_gib")
            if config.figures and config.embedding == "umap":
                import_umap()
                if len(test or train) < _UMAP_IMAGES:
                    raise ValueError(f"--embedding umap needs {_UMAP_IMAGES} images, {len(test or train)} were given")
        case LinearConfig():
            if not config.unit:
                raise ValueError("--unit is empty: say False, True or both")
            points = grid_of(config, ["pooled", *map(str, config.more_levels)])
            check_grid(points)
            check_share(config.held_out)
            at_least_one(config, "epochs", "probe_batch_size", "at_once")
            if len(points) > 1:
                split_stratified(labels, config.held_out, config.seed, train.classes)
            if config.mode == "live" and len(points) > 1:
                raise ValueError(f"--mode live trains one setting, {len(points)} were given: name one of each")
        case LogregConfig():
            check_penalties(config.penalties)
            check_share(config.held_out)
            at_least_one(config, "iterations")
            above_zero(config, "tolerance")
            if len(config.penalties) > 1:
                split_stratified(labels, config.held_out, config.seed, train.classes)
        case FewShotConfig():
            at_least_one(config, "draws")
            if not config.shots or min(config.shots) < 1:
                raise ValueError(f"--shots is {list(config.shots)}: give numbers of images per class, from 1")
            above_zero(config, "inverse_penalty")
            draw_shots(labels, max(config.shots), config.seed, train.classes)
        case FeaturesConfig() if config.format == "parquet":
            import_pyarrow()


def import_umap() -> Any:
    """The module.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module("umap")
    except ImportError as error:
        raise ValueError("--embedding umap needs umap-learn: pip install 'stillroom-eval-ssl[umap]'") from error


def at_least_one(config: FeatureConfig, *names: str) -> None:
    """Refuse numbers below 1; None is none."""
    for name in names:
        if (value := getattr(config, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}: it must be at least 1")


def above_zero(config: FeatureConfig, *names: str) -> None:
    """Refuse numbers that are not above 0, or not finite."""
    for name in names:
        if not (getattr(config, name) > 0 and math.isfinite(getattr(config, name))):
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)}: it must be above 0, and finite")


def numbers_of_neighbours(config: KnnConfig, num_images: int) -> tuple[int, ...]:
    """The k to vote with."""
    return config.k if config.k is not None else tuple(k for k in STANDARD_K if k <= num_images)


def grid_of(config: LinearConfig, readings: list[str]) -> list[Point]:
    """Every combination, those of one reading together."""
    return [
        Point(lr=lr, weight_decay=decay, reading=reading, unit=unit)
        for reading, unit, lr, decay in product(readings, config.unit, config.lrs, config.weight_decays)
    ]
