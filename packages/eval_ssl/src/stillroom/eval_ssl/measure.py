"""The measurements on frozen features: each gives its protocol id, its numbers, and its pictures."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillroom.backbone import Run
from stillroom.backbone.progress import Progress
from stillroom.backbone.schedule import Schedule
from stillroom.eval_ssl.augmented_probe import train_live
from stillroom.eval_ssl.config import (
    FeatureConfig,
    FeaturesConfig,
    FewShotConfig,
    KnnConfig,
    LinearConfig,
    LogregConfig,
)
from stillroom.eval_ssl.export import export_features
from stillroom.eval_ssl.features import Extractor
from stillroom.eval_ssl.frozen import Frozen, describe
from stillroom.eval_ssl.knn import answer, retrieval_map
from stillroom.eval_ssl.logreg import FEW_SHOT_TOLERANCE, few_shot, logistic_regression
from stillroom.eval_ssl.neighbours import nearest_neighbours
from stillroom.eval_ssl.probe import (
    Point,
    ProbeResult,
    Recipe,
    accuracy_of,
    linear_probe,
    split_stratified,
)
from stillroom.eval_ssl.settings import grid_of, numbers_of_neighbours

HEADLINE_K = 20


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a measurement found.

    Args:
        task: `knn`, `linear`, ...
        protocol: its versioned id.
        metrics: name -> fraction.
        extra: what else results.json holds.
        files: writes files into the run directory, before it gets its name.
        pictures: draws into a folder, afterwards.
        done: is called last.
    """

    task: str
    protocol: str
    metrics: dict[str, float]
    extra: dict[str, Any] = field(default_factory=dict)
    files: Callable[[Path], None] | None = None
    pictures: Callable[[Path], None] | None = None
    done: Callable[[], None] | None = None


def measure(config: FeatureConfig, run: Run, frozen: Frozen) -> Measured:
    """What the config asks for."""
    match config:
        case KnnConfig():
            return measure_knn(config, run, frozen)
        case LinearConfig():
            return measure_linear(config, run, frozen)
        case LogregConfig():
            return measure_logreg(config, run, frozen)
        case FewShotConfig():
            return measure_few_shot(config, run, frozen)
        case FeaturesConfig():
            return measure_features(config, frozen)
        case _:
            raise AssertionError(f"no measurement takes a {type(config).__name__}")


def measure_knn(config: KnnConfig, run: Run, frozen: Frozen) -> Measured:
    """All metrics of k-NN, and for each k the accuracy of each class that was tested."""
    train, asked, classes = frozen.train, frozen.asked, frozen.classes
    known, labels, truth = train.features.to(run.device), train.labels.to(run.device), asked.labels
    queries = None if frozen.test is None else frozen.test.features.to(run.device)
    numbers = numbers_of_neighbours(config, len(known) - (queries is None))
    progress = Progress(len(truth), replace(run, world_size=1), "k-NN")  # every process searches for all
    near, rows = nearest_neighbours(
        known, queries, max(numbers), metric=config.metric, backend=config.backend, memory_gib=config.memory_gib,
        progress=progress,
    )  # fmt: skip
    progress.close()
    vote: dict[str, Any] = {"vote": config.vote, "temperature": config.temperature}
    near, rows = near.cpu(), rows.cpu()
    answers = answer(near, train.labels[rows], truth, numbers, len(classes), **vote)
    found = {k: one.metrics() for k, one in answers.items()}
    metrics = {f"{name}_k{k}": found[k][name] for name in ("top1", "top5", "mrr") for k in numbers}
    if config.retrieval:
        metrics["map"] = retrieval_map(
            known, labels, queries, truth, metric=config.metric, memory_gib=config.memory_gib
        )
    how = "majority" if config.vote == "majority" else f"weighted temperature={config.temperature:g}"
    alone = " leave-one-out" if frozen.test is None else ""
    protocol = f"knn/v1 vote={how} similarity={config.metric} {describe(config, frozen)}{alone}"

    def pictures(folder: Path) -> None:
        from stillroom.backbone.figures import draw_confusion  # noqa: PLC0415  # matplotlib, when there is something to draw
        from stillroom.eval_ssl import figures  # noqa: PLC0415

        k = headline(numbers)
        predicted, title = answers[k].predicted, f"{k}-NN of {config.checkpoint[0]}"
        draw_confusion(folder / "confusion.png", truth, predicted, classes, title)
        same = train.labels[rows] == truth[:, None]
        figures.draw_nearest(
            folder / "neighbours.png", asked.files.paths, train.files.paths, rows, same, predicted == truth,
            config.seed,
        )  # fmt: skip
        plane = figures.embed(asked.features, config.embedding, config.seed)
        title = f"{config.embedding.upper()} of {config.checkpoint[0]}"
        figures.draw_embedding(
            folder / "embedding.png", plane, asked.files.paths, truth, classes, title, config.seed
        )  # fmt: skip

    per_class = {str(k): accuracy_by_class(one.predicted == truth, truth, classes) for k, one in answers.items()}
    return Measured(
        task="knn", protocol=protocol, metrics=metrics, extra={"per_class": per_class}, pictures=pictures
    )  # fmt: skip


def headline(numbers: tuple[int, ...]) -> int:
    """The k whose accuracy stands for all: 20, or else the last."""
    return HEADLINE_K if HEADLINE_K in numbers else numbers[-1]


def measure_linear(config: LinearConfig, run: Run, frozen: Frozen) -> Measured:
    """Top-1 and top-5 of the chosen classifier."""
    train, test = frozen.train, frozen.asked
    points = grid_of(config, list(train.readings))
    done: Callable[[], None] | None = None
    recipe = Recipe(
        epochs=config.epochs, batch_size=config.probe_batch_size, schedule=config.schedule, seed=config.seed
    )
    if config.mode == "live":
        extractor = Extractor(frozen.backbone, frozen.head, (config.level,)).to(run.device)
        logits, done = train_live(
            extractor, train, test.features.to(run.device), points[0], recipe, run,
            batch_size=config.batch_size, workers=config.workers, keep=config.cache,
        )  # fmt: skip
        probed = ProbeResult(points[0], (), logits)
    else:
        progress = Progress(rows_in_all(config, points, train.labels), run, "linear")
        probed = linear_probe(
            train.features.to(run.device), train.labels.to(run.device), test.features.to(run.device),
            len(frozen.classes), points, recipe, readings=train.readings, held_out=config.held_out,
            at_once=config.at_once, progress=progress,
        )  # fmt: skip
        progress.close()
    parts = [
        f"linear/{config.name} mode={config.mode} {describe(config, frozen)}",
        f"readings={','.join(train.readings)}" if len(train.readings) > 1 else "",
        "|".join("unit-length,standardised" if unit else "standardised" for unit in config.unit),
        f"schedule={schedule_words(config.schedule)} epochs={config.epochs} batch={config.probe_batch_size}",
        f"lrs={listing(config.lrs)} weight-decays={listing(config.weight_decays)}",
        f"held-out={config.held_out:g}" if len(points) > 1 else "",
    ]
    extra = {
        "chosen": asdict(probed.point),
        # a point alone was not held against any: no accuracies, and an empty grid
        "grid": [
            asdict(p) | {"held_out_top1": top1 if top1 >= 0 else None}
            for p, top1 in zip(points, probed.accuracies, strict=False)
        ],
    }
    measured = classified("linear", " ".join(filter(None, parts)), probed.logits, config, frozen, extra)
    return replace(measured, done=done)


def schedule_words(schedule: Schedule) -> str:
    """A schedule with all its settings, as a protocol id shows it."""
    return f"{type(schedule).__name__.lower()}({','.join(f'{k}={v}' for k, v in asdict(schedule).items())})"


def rows_in_all(config: LinearConfig, points: list[Point], labels: Int[Tensor, " n"]) -> int:
    """Features that go through classifiers, the last training on all of TRAIN included."""
    if len(points) == 1:
        return len(labels) * config.epochs
    kept, _ = split_stratified(labels, config.held_out, config.seed)
    side_by_side = len(config.lrs) * len(config.weight_decays)
    groups = len(points) // side_by_side * -(-side_by_side // (config.at_once or side_by_side))
    return (len(labels) + groups * len(kept)) * config.epochs


def listing(values: tuple[float, ...]) -> str:
    """Settings of a grid, as a protocol id shows them."""
    return ",".join(f"{value:g}" for value in values)


def measure_logreg(config: LogregConfig, run: Run, frozen: Frozen) -> Measured:
    """Top-1 and top-5 of the fit with the chosen penalty."""
    device = device_of_doubles(run)
    train_x, test_x = (each.features.to(device) for each in (frozen.train, frozen.asked))
    regressed = logistic_regression(
        train_x, frozen.train.labels.to(device), test_x, len(frozen.classes), config.penalties,
        held_out=config.held_out, seed=config.seed, tolerance=config.tolerance, iterations=config.iterations,
    )  # fmt: skip
    chosen = f" held-out={config.held_out:g}" if len(config.penalties) > 1 else ""
    protocol = (
        f"logreg/v1 {describe(config, frozen)} standardised tolerance={config.tolerance:g} "
        f"iterations={config.iterations} "
        f"penalties={listing(config.penalties)}{chosen}"
    )
    extra = {
        "chosen": {"penalty": regressed.penalty},
        "grid": [
            {"penalty": penalty, "held_out_top1": top1}
            for penalty, top1 in zip(config.penalties, regressed.accuracies, strict=False)
        ],
        "fits": [{"gradient": slope, "iterations": steps} for slope, steps in regressed.fits],
        "converged": all(slope <= config.tolerance for slope, _ in regressed.fits),
    }
    return classified("logreg", protocol, regressed.logits, config, frozen, extra)


def device_of_doubles(run: Run) -> torch.device:
    """The run's device, or the CPU where that has no float64."""
    return torch.device("cpu") if run.device.type == "mps" else run.device


def classified(
    task: str,
    protocol: str,
    logits: Float[Tensor, "m c"],
    config: LinearConfig | LogregConfig,
    frozen: Frozen,
    extra: dict[str, Any],
) -> Measured:
    """What a classifier's logits are worth."""
    truth, classes = frozen.asked.labels, frozen.classes
    ranks = (logits.cpu().argsort(dim=1, descending=True, stable=True) == truth[:, None]).int().argmax(dim=1)
    metrics = {"top1": float((ranks == 0).double().mean()), "top5": float((ranks < 5).double().mean())}
    predicted = logits.cpu().argmax(dim=1)
    title = f"{task} probe of {config.checkpoint[0]}"

    def pictures(folder: Path) -> None:
        from stillroom.backbone.figures import draw_confusion  # noqa: PLC0415  # matplotlib, when there is something to draw

        draw_confusion(folder / "confusion.png", truth, predicted, classes, title)

    return Measured(
        task=task, protocol=protocol, metrics=metrics,
        extra=extra | {"per_class": accuracy_by_class(ranks == 0, truth, classes)},
        pictures=pictures,
    )  # fmt: skip


def accuracy_by_class(
    right: Bool[Tensor, " m"], truth: Int[Tensor, " m"], classes: tuple[str, ...]
) -> dict[str, float]:
    """The share of right answers for each class that was tested."""
    return {classes[i]: float(right[truth == i].double().mean()) for i in sorted(set(truth.tolist()))}


def measure_few_shot(config: FewShotConfig, run: Run, frozen: Frozen) -> Measured:
    """Mean and spread of top-1 over the draws, for each number of shots."""
    device = device_of_doubles(run)
    train_x, test_x = (each.features.to(device) for each in (frozen.train, frozen.asked))
    train_y, truth = (each.labels.to(device) for each in (frozen.train, frozen.asked))
    accuracies = {
        shots: [
            accuracy_of(
                few_shot(
                    train_x, train_y, test_x, len(frozen.classes), shots, config.seed + draw,
                    inverse_penalty=config.inverse_penalty, classes=frozen.classes,
                ),
                truth,
            )
            for draw in range(config.draws)
        ]
        for shots in config.shots
    }  # fmt: skip
    metrics = {f"top1_s{shots}": statistics.mean(values) for shots, values in accuracies.items()}
    spreads = {
        f"top1_s{shots}_std": statistics.stdev(values) for shots, values in accuracies.items() if len(values) > 1
    }
    protocol = (
        f"few-shot/v2 {describe(config, frozen)} unit-length logreg C={config.inverse_penalty:g} "
        f"tolerance={FEW_SHOT_TOLERANCE:g} draws={config.draws}"
    )

    def pictures(folder: Path) -> None:
        from stillroom.eval_ssl import figures  # noqa: PLC0415  # matplotlib, when there is something to draw

        curves = {config.checkpoint[0]: curve_of(metrics | spreads)}
        figures.draw_shots(folder / "shots.png", curves, "few-shot")

    return Measured(
        task="few-shot", protocol=protocol, metrics=metrics | spreads,
        extra={"draws": {str(shots): values for shots, values in accuracies.items()}},
        pictures=pictures,
    )  # fmt: skip


def curve_of(metrics: dict[str, float]) -> dict[int, tuple[float, float]]:
    """Shots -> mean and spread of top-1, percent."""
    shots = [int(name.removeprefix("top1_s")) for name in metrics if not name.endswith("_std")]
    return {k: (100 * metrics[f"top1_s{k}"], 100 * metrics.get(f"top1_s{k}_std", 0.0)) for k in shots}


def measure_features(config: FeaturesConfig, frozen: Frozen) -> Measured:
    """No number: the features themselves."""
    sets = {"train": frozen.train} | ({} if frozen.test is None else {"test": frozen.test})

    def files(folder: Path) -> None:
        for name, found in sets.items():
            export_features(folder, name, found, config.format)

    shapes = {f"{name}.{config.format}": list(found.features.shape) for name, found in sets.items()}
    protocol = f"features/v1 {describe(config, frozen)}"
    return Measured(task="features", protocol=protocol, metrics={}, extra={"files": shapes}, files=files)
