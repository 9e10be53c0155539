"""Frozen evaluation, from images to results.json."""

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from stillroom.backbone import ImageFiles, Results, Run, weights_sha256, write_results
from stillroom.backbone.atomic import replace_directory, write_file
from stillroom.backbone.configs import config_to_dict
from stillroom.backbone.manifest import read_manifest
from stillroom.backbone.names import checkpoint_method, is_checkpoint
from stillroom.backbone.provenance import made_by
from stillroom.backbone.results import RESULTS, CheckpointRecord, read_results
from stillroom.backbone.schedule import Schedule
from stillroom.backbone.sweep import directory_name, run_or_resume
from stillroom.eval_ssl.config import (
    FeatureConfig,
    FewShotConfig,
    FrozenConfig,
    KnnConfig,
    LinearConfig,
    LogregConfig,
)
from stillroom.eval_ssl.frozen import Frozen, extract_sets, read_sets
from stillroom.eval_ssl.logreg import draw_shots
from stillroom.eval_ssl.measure import Measured, curve_of, measure
from stillroom.eval_ssl.neighbours import check_k
from stillroom.eval_ssl.probe import split_stratified
from stillroom.eval_ssl.settings import check, grid_of, numbers_of_neighbours

PACKAGE = "stillroom-eval-ssl"
UNIONS = (Schedule,)
TABLE = "table.json"
FIGURES = "figures"
_UMAP_IMAGES = 20


def evaluate(config: FeatureConfig) -> Path:
    """Measure each checkpoint as the config's class says, and return the run directory.

    One checkpoint: `out` gets results.json, figures/ and whatever else is measured. Several: `out` gets one such
    directory for each, and table.json; those that are done already are kept.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    check(config)
    run = Run.start(config.device)
    parts = split(config)
    for part in parts:
        refuse_stale(part)
        try:
            if lacks_pictures(part):
                evaluate_one(part, run)
            run_or_resume(part, UNIONS, partial(evaluate_one, run=run))
        except ValueError as error:
            raise (ValueError(f"{part.checkpoint[0]}: {error}") if len(parts) > 1 else error) from error
    if len(parts) > 1 and run.is_main:
        write_table(config, [part.out for part in parts])
    run.wait()
    run.close()
    return config.out


def evaluate_one(config: FeatureConfig, run: Run) -> None:
    """One checkpoint: results.json and the pictures, whole or not at all. Afterwards every process finds them."""
    began = time.perf_counter()
    files = read_sets(config)
    check_images(config, *files)
    frozen = extract_sets(config, run, *files)
    measured = measure(config, run, frozen)
    if run.is_main:
        with replace_directory(config.out) as aside:
            if measured.files is not None:
                measured.files(aside)
            if measured.pictures is not None and isinstance(config, FrozenConfig) and config.figures:
                (aside / FIGURES).mkdir()
                measured.pictures(aside / FIGURES)
            write_results(aside, results_of(config, frozen, measured, time.perf_counter() - began))
        if measured.done is not None:
            measured.done()
    run.wait()


def check_images(config: FeatureConfig, train: ImageFiles, test: ImageFiles | None) -> None:
    """Refuse settings that these images do not allow, before the hours of extraction.

    Raises:
        ValueError: in one sentence.
    """
    labels = torch.tensor(train.labels or ())
    match config:
        case KnnConfig():
            check_k(numbers_of_neighbours(config, len(train) - (test is None)), len(train) - (test is None))
            if config.figures and config.embedding == "umap" and len(test or train) < _UMAP_IMAGES:
                raise ValueError(f"--embedding umap needs {_UMAP_IMAGES} images, {len(test or train)} were given")
        case LinearConfig() if len(grid_of(config, ["pooled", *map(str, config.more_levels)])) > 1:
            split_stratified(labels, config.held_out, config.seed, train.classes)
        case LogregConfig() if len(config.penalties) > 1:
            split_stratified(labels, config.held_out, config.seed, train.classes)
        case FewShotConfig():
            draw_shots(labels, max(config.shots), config.seed, train.classes)


def split(config: FeatureConfig) -> list[FeatureConfig]:
    """One config for each checkpoint; of several each in a directory of its own."""
    if len(config.checkpoint) == 1:
        return [config]
    return [replace(config, checkpoint=(n,), out=config.out / directory_name(n)) for n in config.checkpoint]


def refuse_stale(config: FeatureConfig) -> None:
    """Refuse to keep what was measured on a checkpoint or on images that have changed since.

    Raises:
        ValueError: with what changed.
    """
    if not (config.out / RESULTS).exists():
        return
    found, (name,) = read_results(config.out), config.checkpoint
    train, test = read_sets(config)
    fingerprints = {"train": train.fingerprint} | ({} if test is None else {"test": test.fingerprint})
    if is_checkpoint(name) and read_manifest(Path(name) / "manifest.json").weights.sha256 != found.checkpoint.sha256:
        raise ValueError(f"{config.out} was measured on other weights than {name} has now: choose another --out")
    if fingerprints != {role: record.fingerprint for role, record in found.datasets.items()}:
        raise ValueError(f"{config.out} was measured on other images than there are now: choose another --out")


def lacks_pictures(config: FeatureConfig) -> bool:
    """Whether a measurement is done, but not with the pictures that are wanted now; its features are in the cache."""
    if not (config.out / RESULTS).exists() or not isinstance(config, FrozenConfig) or not config.figures:
        return False
    asked, found = config_to_dict(config, UNIONS), read_results(config.out).made_by.config
    return not (config.out / FIGURES).exists() or asked.get("embedding") != found.get("embedding")


def results_of(config: FeatureConfig, frozen: Frozen, measured: Measured, seconds: float) -> Results:
    """The record of a measurement."""
    (name,) = config.checkpoint
    return Results(
        task=measured.task,
        protocol=measured.protocol,
        datasets=frozen.datasets,
        checkpoint=CheckpointRecord(
            path=name, sha256=weights_sha256(frozen.backbone.net), method=checkpoint_method(name)
        ),
        metrics=measured.metrics,
        seed=config.seed,
        seconds=seconds,
        made_by=made_by(PACKAGE, config_to_dict(config, UNIONS)),
        extra={"broken": frozen.broken, "classes": list(frozen.classes), **measured.extra},
    )


def write_table(config: FeatureConfig, runs: list[Path]) -> None:
    """table.json of several checkpoints, and of few shots their curves in one picture."""
    rows = {name: read_results(run) for name, run in zip(config.checkpoint, runs, strict=True)}
    table = {
        name: {"run": run.name, "protocol": results.protocol, "metrics": results.metrics}
        for (name, results), run in zip(rows.items(), runs, strict=True)
    }
    task = next(iter(rows.values())).task
    write_file(config.out / TABLE, json.dumps({"task": task, "rows": table}, indent=2) + "\n")
    if task == "few-shot" and isinstance(config, FrozenConfig) and config.figures:
        from stillroom.eval_ssl import figures  # noqa: PLC0415  # matplotlib, when there is something to draw

        curves = {name: curve_of(results.metrics) for name, results in rows.items()}
        figures.draw_shots(config.out / "shots.png", curves, "few-shot")
