"""Frozen k-NN evaluation, from images to results.json."""

import time
from pathlib import Path
from typing import Any

from torch import nn

from stillroom.backbone import (
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
from stillroom.eval_ssl.features import extract_features
from stillroom.eval_ssl.knn import knn_classify
from stillroom.eval_ssl.neighbours import check_k

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
    run = Run.start(config.device)
    train_files = read_labelled(config.train)
    test_files = read_labelled(config.test, train_files.classes)
    if len(train_files.classes) < 2:
        raise ValueError(f"{config.train} holds one class, {train_files.classes[0]}: there is nothing to tell apart")
    check_k(config.k, len(train_files))  # before the hours of extraction
    seed_everything(config.seed)
    backbone = load_backbone(config.checkpoint, config.feature).to(run.device)
    backbone = replace_input(backbone, size=config.size, crop_fraction=config.crop_fraction)
    head = load_head(config).to(run.device) if config.head else None
    options: dict[str, Any] = {"batch_size": config.batch_size, "workers": config.workers, "head": head}
    train = extract_features(backbone, train_files, run, **options, on_broken=config.on_broken, label="train")
    test = extract_features(backbone, test_files, run, **options, on_broken=config.on_broken, label="test")
    predicted = knn_classify(train.features, train.labels, test.features, config.k, len(train_files.classes))
    metrics = {f"top1_k{k}": float((classes == test.labels).float().mean()) for k, classes in predicted.items()}
    spec = backbone.spec
    results = Results(
        task="knn",
        protocol=(
            f"{PROTOCOL} vote=majority similarity=cosine feature={spec.feature} "
            f"size={spec.input.size} crop={spec.input.crop_fraction:g} resize={spec.input.resize.replace(' ', '-')}"
            f"{f' head={config.head}' if config.head else ''}"
        ),
        datasets={
            "train": DatasetRecord.of(train_files, broken=len(train.broken)),
            "test": DatasetRecord.of(test_files, broken=len(test.broken)),
        },
        checkpoint=CheckpointRecord(
            path=config.checkpoint, sha256=weights_sha256(backbone.net), method=checkpoint_method(config.checkpoint)
        ),
        metrics=metrics,
        seed=config.seed,
        seconds=time.perf_counter() - began,
        made_by=made_by(PACKAGE, config_to_dict(config)),
        extra={"broken": [*train.broken, *test.broken], "classes": list(train_files.classes)},
    )
    if run.is_main:
        with replace_directory(config.out) as aside:
            write_results(aside, results)
    run.wait()  # every process finds results.json when this returns
    run.close()
    return config.out


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
    rows = [[name.removeprefix("top1_k"), percent(results.metrics, name)] for name in results.metrics]
    best = list(results.metrics)[-1]
    table = format_table(["k", "top-1 %"], rows)
    return f"{results.protocol}\n{table}\n{path}: {percent(results.metrics, best)} % top-1 at k = {rows[-1][0]}"
