"""Frozen evaluation, from images to results.json."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

from stillroom.backbone import Results, Run, weights_sha256, write_results
from stillroom.backbone.configs import config_to_dict
from stillroom.backbone.files import replace_directory, write_file
from stillroom.backbone.provenance import made_by
from stillroom.backbone.registry import checkpoint_method
from stillroom.backbone.results import RESULTS, CheckpointRecord, read_results
from stillroom.backbone.schedule import Schedule
from stillroom.eval_ssl import figures
from stillroom.eval_ssl.config import FeatureConfig, FrozenConfig
from stillroom.eval_ssl.frozen import Frozen, extract_sets, read_sets
from stillroom.eval_ssl.measure import Measured, check_settings, curve_of, measure

PACKAGE = "stillroom-eval-ssl"
UNIONS = (Schedule,)
TABLE = "table.json"
_FREE = ("device", "workers", "cache", "figures", "out")  # fields that change no number


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
        if not is_done(part):
            evaluate_one(part, run)
    if len(parts) > 1 and run.is_main:
        write_table(config, [part.out for part in parts])
    run.wait()
    run.close()
    return config.out


def evaluate_one(config: FeatureConfig, run: Run) -> None:
    """One checkpoint: results.json, whole or not at all; then the pictures. Afterwards every process finds them."""
    began = time.perf_counter()
    files = read_sets(config)
    check_settings(config, *files)
    frozen = extract_sets(config, run, *files)
    measured = measure(config, run, frozen)
    if run.is_main:
        with replace_directory(config.out) as aside:
            if measured.files is not None:
                measured.files(aside)
            write_results(aside, results_of(config, frozen, measured, time.perf_counter() - began))
        if measured.pictures is not None and isinstance(config, FrozenConfig) and config.figures:
            with replace_directory(config.out / "figures") as aside:
                measured.pictures(aside)
    run.wait()


def check(config: FeatureConfig) -> None:
    """Refuse settings that cannot work before anything is read."""
    if not config.checkpoint:
        raise ValueError("--checkpoint is empty: give at least one")
    if len(config.checkpoint) == 1 and config.out.exists():
        raise ValueError(f"{config.out} exists: choose another --out")
    if config.batch_size < 1:
        raise ValueError(f"--batch-size is {config.batch_size}: it must be at least 1")
    if config.limit is not None and config.limit < 1:
        raise ValueError(f"--limit is {config.limit}: it must be at least 1")


def split(config: FeatureConfig) -> list[FeatureConfig]:
    """One config for each checkpoint; of several each in a directory of its own."""
    if len(config.checkpoint) == 1:
        return [config]
    return [
        replace(
            config, checkpoint=(name,), out=config.out / f"{place}-{re.sub('[^A-Za-z0-9.]+', '-', name).strip('-')}"
        )
        for place, name in enumerate(config.checkpoint)
    ]


def is_done(config: FeatureConfig) -> bool:
    """Whether this measurement stands there already.

    Raises:
        ValueError: another one does.
    """
    if not (config.out / RESULTS).exists():
        return False
    asked, found = ({k: v for k, v in each.items() if k not in _FREE} for each in (
        config_to_dict(config, UNIONS), read_results(config.out).made_by.config))  # fmt: skip
    if asked != found:
        differ = sorted(k for k in asked if asked[k] != found.get(k))
        raise ValueError(f"{config.out} was measured with other settings ({', '.join(differ)}): choose another --out")
    return True


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
        curves = {name: curve_of(results.metrics) for name, results in rows.items()}
        figures.draw_shots(config.out / "shots.png", curves, "few-shot")
