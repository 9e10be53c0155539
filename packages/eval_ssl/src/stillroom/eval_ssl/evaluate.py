"""Frozen evaluation, from images to results.json: k-NN and linear probes."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor, nn

from stillroom.backbone import (
    Backbone,
    ImageFiles,
    Results,
    Run,
    format_table,
    load_backbone,
    load_checkpoint,
    read_labelled,
    replace_input,
    weights_sha256,
    write_results,
)
from stillroom.backbone.checkpoint import load_heads
from stillroom.backbone.configs import config_to_dict
from stillroom.backbone.files import replace_directory
from stillroom.backbone.heads import build_head
from stillroom.backbone.progress import Progress
from stillroom.backbone.provenance import made_by
from stillroom.backbone.registry import checkpoint_method, is_checkpoint
from stillroom.backbone.results import CheckpointRecord, DatasetRecord, percent, read_results
from stillroom.backbone.run import seed_everything
from stillroom.backbone.schedule import Schedule
from stillroom.eval_ssl.config import FrozenConfig, KnnConfig, LinearConfig
from stillroom.eval_ssl.features import FeatureSet, extract_features
from stillroom.eval_ssl.knn import answer, check_temperature, retrieval_map
from stillroom.eval_ssl.neighbours import check_k, nearest_neighbours
from stillroom.eval_ssl.probe import Point, Recipe, check_grid, check_share, linear_probe

PACKAGE = "stillroom-eval-ssl"
PROTOCOL = "knn/v1"
UNIONS = (Schedule,)


def evaluate_knn(config: KnnConfig) -> Path:
    """Classify the test images by their nearest training images, and return the run directory.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    began = time.perf_counter()
    check(config)
    check_temperature(config.temperature)
    run = Run.start(config.device)
    files = read_sets(config)
    check_k(config.k, len(files[0]) - (files[1] is None))  # before the hours of extraction
    frozen = extract_sets(config, run, *files)
    vote = "majority" if config.vote == "majority" else f"weighted temperature={config.temperature:g}"
    protocol = f"{PROTOCOL} vote={vote} similarity={config.metric} {describe(config, frozen)}"
    metrics, per_class = score(config, run, frozen)
    return write(config, run, frozen, "knn", protocol, metrics, {"per_class": per_class}, began)


def evaluate_linear(config: LinearConfig) -> Path:
    """Train a linear classifier on the training images' features, and return the run directory.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    began = time.perf_counter()
    check(config)
    points = [Point(lr=lr, weight_decay=decay) for lr in config.lrs for decay in config.weight_decays]
    check_grid(points)
    check_share(config.held_out)
    for name in ("epochs", "probe_batch_size", "at_once"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}: it must be at least 1")
    recipe = Recipe(
        epochs=config.epochs, batch_size=config.probe_batch_size, schedule=config.schedule, seed=config.seed
    )
    run = Run.start(config.device)
    frozen = extract_sets(config, run, *read_sets(config))
    assert frozen.test is not None, "only k-NN does without"
    train, test = frozen.train, frozen.test
    shown = round(len(train.labels) * (1 + (1 - config.held_out) * (len(points) > 1))) * config.epochs
    probed = linear_probe(
        train.features.to(run.device), train.labels.to(run.device), test.features.to(run.device),
        len(frozen.classes), points, recipe, held_out=config.held_out, unit=config.unit, at_once=config.at_once,
        progress=Progress(shown, run, "linear"),
    )  # fmt: skip
    ranks = (probed.logits.cpu().argsort(dim=1, descending=True) == test.labels[:, None]).int().argmax(dim=1)
    metrics = {"top1": float((ranks == 0).double().mean()), "top5": float((ranks < 5).double().mean())}
    extra = {
        "chosen": asdict(probed.point),
        # a point alone was not held against any: no accuracies, and an empty grid
        "grid": [asdict(p) | {"held_out_top1": top1} for p, top1 in zip(points, probed.accuracies, strict=False)],
        "per_class": accuracy_by_class(ranks == 0, test.labels, frozen.classes),
    }
    grid = f"lrs={numbers(config.lrs)} weight-decays={numbers(config.weight_decays)}"
    chosen = f" held-out={config.held_out:g}" if len(points) > 1 else ""
    protocol = (
        f"linear/{config.name} {describe(config, frozen)} {'unit-length,' if config.unit else ''}standardised "
        f"schedule={type(config.schedule).__name__.lower()} epochs={config.epochs} batch={config.probe_batch_size} "
        f"{grid}{chosen}"
    )
    return write(config, run, frozen, "linear", protocol, metrics, extra, began)


def numbers(values: tuple[float, ...]) -> str:
    """Settings of a grid, as a protocol id shows them."""
    return ",".join(f"{value:g}" for value in values)


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """What a net makes of the images."""

    backbone: Backbone
    train: FeatureSet
    test: FeatureSet | None
    classes: tuple[str, ...]
    datasets: dict[str, DatasetRecord]


def check(config: FrozenConfig) -> None:
    """Refuse settings that cannot work before anything is read."""
    if config.out.exists():
        raise ValueError(f"{config.out} exists: choose another --out")
    if config.batch_size < 1:
        raise ValueError(f"--batch-size is {config.batch_size}: it must be at least 1")
    if config.limit is not None and config.limit < 1:
        raise ValueError(f"--limit is {config.limit}: it must be at least 1")


def read_sets(config: FrozenConfig) -> tuple[ImageFiles, ImageFiles | None]:
    """The images whose labels are known and those to classify, or as many of them as `--limit` lets through.

    Raises:
        ValueError: see `read_labelled`; one class alone.
    """
    train = read_labelled(config.train)
    if len(train.classes) < 2:
        raise ValueError(f"{config.train} holds one class, {train.classes[0]}: there is nothing to tell apart")
    test = None if config.test is None else read_labelled(config.test, train.classes)
    return draw(train, config), None if test is None else draw(test, config)


def draw(files: ImageFiles, config: FrozenConfig) -> ImageFiles:
    """As many of the images as `--limit` lets through."""
    if config.limit is None:
        return files
    order = np.random.default_rng([config.seed, len(files)]).permutation(len(files))
    return files.subset(sorted(order[: config.limit].tolist()))


def extract_sets(config: FrozenConfig, run: Run, train_files: ImageFiles, test_files: ImageFiles | None) -> Frozen:
    """The features of both sets."""
    seed_everything(config.seed)
    backbone = load_backbone(config.checkpoint, config.feature).to(run.device)
    backbone = replace_input(backbone, size=config.size, crop_fraction=config.crop_fraction)
    options: dict[str, Any] = {
        "batch_size": config.batch_size,
        "workers": config.workers,
        "on_broken": config.on_broken,
        "head": load_head(config).to(run.device) if config.head else None,
        "level": config.level,
        "keep": config.cache,
    }
    train, test = extract_features(backbone, train_files, run, **options, label="train"), None
    datasets = {"train": DatasetRecord.of(train_files, broken=len(train.broken))}
    if test_files is not None:
        test = extract_features(backbone, test_files, run, **options, label="test")
        datasets["test"] = DatasetRecord.of(test_files, broken=len(test.broken))
    return Frozen(backbone=backbone, train=train, test=test, classes=train_files.classes, datasets=datasets)


def score(config: KnnConfig, run: Run, frozen: Frozen) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """All metrics of k-NN, and for each k the accuracy of each class that was tested."""
    train, test, classes = frozen.train, frozen.test, frozen.classes
    known, labels = train.features.to(run.device), train.labels.to(run.device)
    asked = None if test is None else test.features.to(run.device)
    truth = train.labels if test is None else test.labels
    near, rows = nearest_neighbours(
        known, asked, max(config.k), metric=config.metric, backend=config.backend, memory_gib=config.memory_gib
    )
    vote: dict[str, Any] = {"vote": config.vote, "temperature": config.temperature}
    answers = answer(near, labels[rows], truth.to(run.device), config.k, len(classes), **vote)
    found = {k: one.metrics() for k, one in answers.items()}
    metrics = {f"{name}_k{k}": found[k][name] for name in ("top1", "top5", "mrr") for k in config.k}
    if config.retrieval:
        metrics["map"] = retrieval_map(known, labels, asked, truth, metric=config.metric)
    return metrics, {str(k): accuracy_by_class(one.predicted == truth, truth, classes) for k, one in answers.items()}


def accuracy_by_class(
    right: Bool[Tensor, " m"], truth: Int[Tensor, " m"], classes: tuple[str, ...]
) -> dict[str, float]:
    """The share of right answers for each class that was tested."""
    return {classes[i]: float(right[truth == i].double().mean()) for i in sorted(set(truth.tolist()))}


def describe(config: FrozenConfig, frozen: Frozen) -> str:
    """The part of the protocol id that says what the features are, and of which images."""
    spec = frozen.backbone.spec
    return (
        f"feature={spec.feature} size={spec.input.size} crop={spec.input.crop_fraction:g} "
        f"resize={spec.input.resize.replace(' ', '-')}"
        f"{f' level={config.level}' if config.level is not None else ''}"
        f"{f' head={config.head}' if config.head else ''}{' leave-one-out' if frozen.test is None else ''}"
        f"{f' limit={config.limit}' if config.limit else ''}"
    )


def write(
    config: FrozenConfig,
    run: Run,
    frozen: Frozen,
    task: str,
    protocol: str,
    metrics: dict[str, float],
    extra: dict[str, Any],
    began: float,
) -> Path:
    """results.json, whole or not at all; afterwards every process finds it."""
    checkpoint = CheckpointRecord(
        path=config.checkpoint,
        sha256=weights_sha256(frozen.backbone.net),
        method=checkpoint_method(config.checkpoint),
    )
    broken = [*frozen.train.broken, *(frozen.test.broken if frozen.test is not None else ())]
    results = Results(
        task=task,
        protocol=protocol,
        datasets=frozen.datasets,
        checkpoint=checkpoint,
        metrics=metrics,
        seed=config.seed,
        seconds=time.perf_counter() - began,
        made_by=made_by(PACKAGE, config_to_dict(config, UNIONS)),
        extra={"broken": broken, "classes": list(frozen.classes), **extra},
    )
    if run.is_main:
        with replace_directory(config.out) as aside:
            write_results(aside, results)
    run.wait()
    run.close()
    return config.out


def load_head(config: FrozenConfig) -> nn.Module:
    """The head that the checkpoint keeps under `config.head`.

    Raises:
        ValueError: a backbone name instead of a checkpoint; `CheckpointError` where it keeps no such head.
    """
    assert config.head is not None
    if not is_checkpoint(config.checkpoint):
        raise ValueError(f"--head {config.head}: {config.checkpoint} is no checkpoint directory, so it keeps no head")
    tensors = load_heads(config.checkpoint, config.head)
    return build_head(load_checkpoint(config.checkpoint)[1].heads[config.head], tensors)


def report(path: Path) -> str:
    """The table of a run, its protocol above, and the last line: directory and the one number that matters."""
    results = read_results(path)
    return (report_linear if results.task == "linear" else report_knn)(path, results)


def report_linear(path: Path, results: Results) -> str:
    """What was chosen of which grid, and what it scores."""
    rows = [
        [f"{point['lr']:g}", f"{point['weight_decay']:g}", f"{100 * point['held_out_top1']:.1f}"]
        for point in results.extra["grid"]
    ]
    chosen = results.extra["chosen"]
    words = f"chosen: learning rate {chosen['lr']:g}, weight decay {chosen['weight_decay']:g}"
    grid = [format_table(["lr", "weight decay", "held-out top-1 %"], rows)] if rows else []
    last = f"{path}: {percent(results.metrics, 'top1')} % top-1, {percent(results.metrics, 'top5')} % top-5"
    return "\n".join([results.protocol, *grid, words, last])


def report_knn(path: Path, results: Results) -> str:
    """All k."""
    neighbours = [name.removeprefix("top1_k") for name in results.metrics if name.startswith("top1_k")]
    rows = [[k, *(percent(results.metrics, f"{name}_k{k}") for name in ("top1", "top5", "mrr"))] for k in neighbours]
    table = format_table(["k", "top-1 %", "top-5 %", "MRR %"], rows)
    best = percent(results.metrics, f"top1_k{neighbours[-1]}")
    lines = [results.protocol, table, f"{path}: {best} % top-1 at k = {neighbours[-1]}"]
    if "map" in results.metrics:
        lines.insert(2, f"retrieval: mean average precision {percent(results.metrics, 'map')} %")
    return "\n".join(lines)
