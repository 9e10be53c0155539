"""Frozen k-NN evaluation, from images to results.json."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from stillroom.backbone import (
    BackboneSpec,
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
from stillroom.backbone.provenance import made_by
from stillroom.backbone.registry import checkpoint_method, is_checkpoint
from stillroom.backbone.results import CheckpointRecord, DatasetRecord, percent, read_results
from stillroom.backbone.run import seed_everything
from stillroom.eval_ssl.config import KnnConfig
from stillroom.eval_ssl.features import FeatureSet, extract_features
from stillroom.eval_ssl.knn import answer, check_temperature, retrieval_map
from stillroom.eval_ssl.neighbours import check_k, nearest_neighbours

PACKAGE = "stillroom-eval-ssl"
PROTOCOL = "knn/v1"


def evaluate_knn(config: KnnConfig) -> Path:
    """Classify the test images by their nearest training images, and return the run directory.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    began = time.perf_counter()
    if config.out.exists():
        raise ValueError(f"{config.out} exists: choose another --out")
    if config.batch_size < 1:
        raise ValueError(f"--batch-size is {config.batch_size}: it must be at least 1")
    check_temperature(config.temperature)
    run = Run.start(config.device)
    train_files, test_files = read_sets(config)
    check_k(config.k, len(train_files) - (test_files is None))  # before the hours of extraction
    seed_everything(config.seed)
    backbone = load_backbone(config.checkpoint, config.feature).to(run.device)
    backbone = replace_input(backbone, size=config.size, crop_fraction=config.crop_fraction)
    head = load_head(config).to(run.device) if config.head else None
    options: dict[str, Any] = {
        "batch_size": config.batch_size,
        "workers": config.workers,
        "head": head,
        "level": config.level,
        "keep": config.cache,
    }
    train = extract_features(backbone, train_files, run, **options, on_broken=config.on_broken, label="train")
    datasets = {"train": DatasetRecord.of(train_files, broken=len(train.broken))}
    test, broken = None, [*train.broken]
    if test_files is not None:
        test = extract_features(backbone, test_files, run, **options, on_broken=config.on_broken, label="test")
        datasets["test"] = DatasetRecord.of(test_files, broken=len(test.broken))
        broken += test.broken
    metrics, per_class = score(config, run, train, test, train_files.classes)
    results = Results(
        task="knn",
        protocol=protocol(config, backbone.spec),
        datasets=datasets,
        checkpoint=CheckpointRecord(
            path=config.checkpoint, sha256=weights_sha256(backbone.net), method=checkpoint_method(config.checkpoint)
        ),
        metrics=metrics,
        seed=config.seed,
        seconds=time.perf_counter() - began,
        made_by=made_by(PACKAGE, config_to_dict(config)),
        extra={"broken": broken, "classes": list(train_files.classes), "per_class": per_class},
    )
    if run.is_main:
        with replace_directory(config.out) as aside:
            write_results(aside, results)
    run.wait()  # every process finds results.json when this returns
    run.close()
    return config.out


def read_sets(config: KnnConfig) -> tuple[ImageFiles, ImageFiles | None]:
    """The images to compare with and those to classify.

    Raises:
        ValueError: see `read_labelled`; one class alone; a limit below 1.
    """
    train = read_labelled(config.train)
    if len(train.classes) < 2:
        raise ValueError(f"{config.train} holds one class, {train.classes[0]}: there is nothing to tell apart")
    test = None if config.test is None else read_labelled(config.test, train.classes)
    return draw(train, config), None if test is None else draw(test, config)


def draw(files: ImageFiles, config: KnnConfig) -> ImageFiles:
    """As many of the images as `--limit` lets through."""
    if config.limit is None:
        return files
    if config.limit < 1:
        raise ValueError(f"--limit is {config.limit}: it must be at least 1")
    order = np.random.default_rng([config.seed, len(files)]).permutation(len(files))
    return files.subset(sorted(order[: config.limit].tolist()))


def score(
    config: KnnConfig, run: Run, train: FeatureSet, test: FeatureSet | None, classes: tuple[str, ...]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """All metrics, and for each k the accuracy of each class that was tested."""
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
    tested = sorted(set(truth.tolist()))
    per_class = {
        str(k): {classes[label]: float((one.predicted[truth == label] == label).double().mean()) for label in tested}
        for k, one in answers.items()
    }
    return metrics, per_class


def protocol(config: KnnConfig, spec: BackboneSpec) -> str:
    """The id of what was measured; all that a number depends on, but for the images and k, which its name says."""
    vote = "majority" if config.vote == "majority" else f"weighted temperature={config.temperature:g}"
    return (
        f"{PROTOCOL} vote={vote} similarity={config.metric} feature={spec.feature} "
        f"size={spec.input.size} crop={spec.input.crop_fraction:g} resize={spec.input.resize.replace(' ', '-')}"
        f"{f' level={config.level}' if config.level is not None else ''}"
        f"{f' head={config.head}' if config.head else ''}{' leave-one-out' if config.test is None else ''}"
        f"{f' limit={config.limit}' if config.limit else ''}"
    )


def load_head(config: KnnConfig) -> nn.Module:
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
    """The table of a k-NN run, its protocol above, and the last line: directory and the one number that matters."""
    results = read_results(path)
    numbers = [name.removeprefix("top1_k") for name in results.metrics if name.startswith("top1_k")]
    rows = [[k, *(percent(results.metrics, f"{name}_k{k}") for name in ("top1", "top5", "mrr"))] for k in numbers]
    table = format_table(["k", "top-1 %", "top-5 %", "MRR %"], rows)
    best = percent(results.metrics, f"top1_k{numbers[-1]}")
    lines = [results.protocol, table, f"{path}: {best} % top-1 at k = {numbers[-1]}"]
    if "map" in results.metrics:
        lines.insert(2, f"retrieval: mean average precision {percent(results.metrics, 'map')} %")
    return "\n".join(lines)
