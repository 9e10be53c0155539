"""Settings that cannot work, found before torch is imported; and what follows from those that can."""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from stillroom.backbone.image_files import refuse_missing_images
from stillroom.backbone.names import refuse_missing_checkpoint
from stillroom.backbone.results import RESULTS
from stillroom.backbone.sweep import refuse_twice
from stillroom.eval_ssl.config import (
    FeatureConfig,
    FeaturesConfig,
    FewShotConfig,
    KnnConfig,
    LinearConfig,
    LogregConfig,
)

STANDARD_K = (1, 5, 10, 20, 100, 200)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting of a grid: how to learn, and from what.

    Args:
        lr, weight_decay: of SGD.
        reading: which of the features' readings; see `linear_probe`.
        unit: whether features are brought to unit length before they are standardised.
    """

    lr: float
    weight_decay: float
    reading: str = "pooled"
    unit: bool = False

    def __str__(self) -> str:
        unit = " of unit length" if self.unit else ""
        return f"learning rate {self.lr:g}, weight decay {self.weight_decay:g}, {self.reading}{unit}"


def preflight(config: FeatureConfig) -> None:
    """Refuse what needs no torch to be refused, before a command imports it: flags, and paths that are not there.

    Raises:
        ValueError: in the sentence that the run would end with.
    """
    check(config)
    for images in filter(None, (config.train, config.test)):
        refuse_missing_images(images)
    for name in config.checkpoint:
        refuse_missing_checkpoint(name)


def check(config: FeatureConfig) -> None:
    """Refuse settings that cannot work, whatever the images are, before anything is read.

    Raises:
        ValueError: in one sentence.
    """
    if not config.checkpoint:
        raise ValueError("--checkpoint is empty: give at least one")
    refuse_twice(config.checkpoint, "--checkpoint")
    if config.out.exists() and (len(config.checkpoint) == 1 or (config.out / RESULTS).exists() or config.out.is_file()):
        raise ValueError(f"{config.out} exists: choose another --out")
    if config.seed < 0:
        raise ValueError(f"--seed is {config.seed}: it must be at least 0")
    at_least_one(config, "batch_size", "limit")
    match config:
        case KnnConfig():
            check_temperature(config.temperature)
            above_zero(config, "memory_gib")
            if config.figures and config.embedding == "umap":
                import_umap()
        case LinearConfig():
            if not config.unit:
                raise ValueError("--unit is empty: say False, True or both")
            points = grid_of(config, ["pooled", *map(str, config.more_levels)])
            check_grid(points)
            check_share(config.held_out)
            at_least_one(config, "epochs", "probe_batch_size", "at_once")
            if config.mode == "live" and len(points) > 1:
                raise ValueError(f"--mode live trains one setting, {len(points)} were given: name one of each")
        case LogregConfig():
            check_penalties(config.penalties)
            check_share(config.held_out)
            at_least_one(config, "iterations")
            above_zero(config, "tolerance")
        case FewShotConfig():
            at_least_one(config, "draws")
            if not config.shots or min(config.shots) < 1:
                raise ValueError(f"--shots is {list(config.shots)}: give numbers of images per class, from 1")
            above_zero(config, "inverse_penalty")
        case FeaturesConfig() if config.format == "parquet":
            import_pyarrow()


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that weighs nothing.

    Raises:
        ValueError: not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"--temperature is {temperature}: it must be above 0")


def check_grid(points: Sequence[Point]) -> None:
    """Refuse a grid that cannot be trained.

    Raises:
        ValueError: an empty one, a negative setting.
    """
    if not points:
        raise ValueError("the grid is empty: give at least one --lrs and one --weight-decays")
    if not all(value >= 0 for point in points for value in (point.lr, point.weight_decay)):
        raise ValueError("a learning rate or a weight decay of the grid is negative, or no number")


def check_share(share: float) -> None:
    """Refuse a share that leaves one side empty.

    Raises:
        ValueError: outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"--held-out is {share}: it must lie in (0, 1)")


def check_penalties(penalties: Sequence[float]) -> None:
    """Refuse penalties without meaning.

    Raises:
        ValueError: none at all; one that is not above 0, for then separable classes have no solution.
    """
    if not penalties:
        raise ValueError("--penalties is empty: give at least one")
    if bad := [penalty for penalty in penalties if not (penalty > 0 and math.isfinite(penalty))]:
        raise ValueError(f"--penalties holds {bad[0]:g}: they must be above 0, and finite")


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


def import_umap() -> Any:
    """The module.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module("umap")
    except ImportError as error:
        raise ValueError("--embedding umap needs umap-learn: pip install 'stillroom-eval-ssl[umap]'") from error


def import_pyarrow() -> tuple[Any, Any]:
    """The modules.

    Raises:
        ValueError: they are not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError("--format parquet needs pyarrow: pip install 'stillroom-eval-ssl[parquet]'") from error
