"""Frozen evaluation, from a config to results.json: the life cycle that all protocols share."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from stillroom.backbone import load_backbone, replace_input, weights_sha256
from stillroom.backbone.atomic import replace_directory
from stillroom.backbone.checkpoint import load_heads
from stillroom.backbone.heads import build_head
from stillroom.backbone.initial import refuse_size
from stillroom.backbone.manifest import MANIFEST, read_manifest
from stillroom.backbone.names import checkpoint_method, is_checkpoint
from stillroom.backbone.provenance import made_by
from stillroom.backbone.seeds import seed_everything
from stillroom.eval_ssl.comparison import write_comparison
from stillroom.eval_ssl.config import EvaluationConfig, MeasurementConfig, Outcome
from stillroom.eval_ssl.features import FeatureSets, extract_features
from stillroom.images import Source
from stillroom.images.picture import describe_decoding
from stillroom.images.source import count_shared
from stillroom.runs import Results, Run, read_results, write_results
from stillroom.runs.configs import config_to_dict
from stillroom.runs.executor import JOBS, submit_all
from stillroom.runs.guard import share
from stillroom.runs.inputs import Input, checkpoint_inputs, data_inputs, refuse_changed_inputs
from stillroom.runs.results import RESULTS, CheckpointRecord
from stillroom.runs.schedule import Schedule
from stillroom.runs.sweep import directory_name, refuse_other, run_or_resume

PACKAGE = "stillroom-eval-ssl"
UNIONS = (Schedule,)
FIGURES = "figures"
CHECKPOINT = "checkpoint"
"""The name of the measured weights among the inputs of an evaluation."""


def evaluate(config: EvaluationConfig) -> Path:
    """Evaluate each checkpoint by the config's protocol, and return the run directory.

    One checkpoint: `out` gets results.json, figures/ and what else the protocol writes. Several: `out` gets one such
    directory per checkpoint, and table.json; finished ones are kept, one alone too with `if_exists` "resume".

    Raises:
        ValueError: bad input, each in one sentence.
    """
    # 1. Refuse flags that cannot work, before anything is read.
    config.check()

    # 2. Join the processes that torchrun started, or be the only one.
    run = Run.start(config.device)

    # 3. Checkpoint by checkpoint, here or in jobs of their own.
    singles = split(config)
    if config.executor == "submitit":
        jobs = config.out / JOBS if len(singles) > 1 else config.out.with_name(f"{config.out.name}-{JOBS}")
        cells = [replace(single, executor="local", executor_options=(), if_exists="resume") for single in singles]
        calls = {cell.out.name: partial(evaluate, cell) for cell in cells}
        submit_all(calls, jobs, config.executor_options)
    else:
        keep = partial(keep_or_evaluate, run=run, several=len(singles) > 1)
        share(singles, keep, run, patient=config.if_exists == "resume")

    # 4. Compare several checkpoints in one table.
    if len(singles) > 1 and run.is_main:
        write_comparison(config, [single.out for single in singles])

    # 5. Leave together, when the files are there for every process.
    run.wait()
    run.close()
    return config.out


def keep_or_evaluate(config: EvaluationConfig, run: Run, *, several: bool) -> None:
    """Keep a finished evaluation of one checkpoint unless its weights or images changed, or do it.

    Args:
        config: of one checkpoint.
        run: this process.
        several: whether an error has to name the checkpoint.
    """
    refuse_stale(config)
    try:
        if lacks_figures(config):
            evaluate_one(config, run)
        run_or_resume(config, UNIONS, partial(evaluate_one, run=run))
    except ValueError as error:
        if several:  # the same error, so that it keeps its traceback: a bug must not look like bad input
            error.args = (f"{config.checkpoint[0]}: {error}",)
        raise


def evaluate_one(config: EvaluationConfig, run: Run) -> None:
    """Evaluate one checkpoint: results.json and figures, whole or not at all. Afterwards every process sees them."""
    began = time.perf_counter()

    # 1. List the images, and refuse flags that they do not allow.
    train_files, test_files = config.read_images()
    config.check_images(train_files, test_files)

    # 2. Extract the features of TRAIN and TEST, or read them from the cache.
    features = extract(config, run, train_files, test_files)

    # 3. Apply the protocol.
    outcome = config.evaluate(features, run)

    # 4. Write files, figures and results into a temporary directory, then rename it.
    if run.is_main:
        with replace_directory(config.out) as temporary:
            if outcome.write_files is not None:
                outcome.write_files(temporary)
            if outcome.draw_figures is not None and draws_figures(config):
                (temporary / FIGURES).mkdir()
                outcome.draw_figures(temporary / FIGURES)
            write_results(temporary, results_of(config, features, outcome, time.perf_counter() - began))
        if outcome.clean_up is not None:
            outcome.clean_up()
    run.wait()


def split(config: EvaluationConfig) -> list[EvaluationConfig]:
    """One config per checkpoint; several get directories of their own."""
    if len(config.checkpoint) == 1:
        return [config]
    return [replace(config, checkpoint=(n,), out=config.out / directory_name(n)) for n in config.checkpoint]


def refuse_stale(config: EvaluationConfig) -> None:
    """Refuse to keep an evaluation, or to draw its figures, if its settings, checkpoint or images have changed since.

    Raises:
        ValueError: with what changed.
    """
    if not (config.out / RESULTS).exists():
        return
    results, (name,) = read_results(config.out), config.checkpoint
    refuse_other(config, UNIONS, results.made_by.config)
    train, test = config.read_images()
    records = {role: files.record() for role, files in (("train", train), ("test", test)) if files is not None}
    if is_checkpoint(name) and read_manifest(Path(name) / MANIFEST).weights.sha256 != results.checkpoint.sha256:
        raise ValueError(f"{config.out} was measured on other weights than {name} has now: choose another --out")
    inputs, began = data_inputs(records), data_inputs(results.datasets)
    if any(began.get(name, one).sha256 != one.sha256 for name, one in inputs.items()):
        raise ValueError(f"{config.out} was measured on other images than there are now: choose another --out")
    inputs |= checkpoint_inputs(name, CHECKPOINT)
    hashes = {role: one.sha256 for role, one in began.items()} | {CHECKPOINT: results.checkpoint.sha256}
    hashes |= results.extra.get("inputs", {})
    if config.head:
        inputs["head"] = Input(f"head {config.head} of {name}", weights_sha256(load_head(name, config.head)))
    refuse_changed_inputs(config.out, inputs, hashes)


def draws_figures(config: EvaluationConfig) -> bool:
    """Whether figures are requested."""
    return isinstance(config, MeasurementConfig) and config.figures


def lacks_figures(config: EvaluationConfig) -> bool:
    """Whether an evaluation is finished, but without the figures that are requested now."""
    if not (config.out / RESULTS).exists() or not draws_figures(config):
        return False
    now, then = config_to_dict(config, UNIONS), read_results(config.out).made_by.config
    return not (config.out / FIGURES).exists() or now.get("embedding") != then.get("embedding")


def extract(config: EvaluationConfig, run: Run, train_files: Source, test_files: Source | None) -> FeatureSets:
    """Load the config's one checkpoint, and extract the features of both image sets."""
    shared: int | None = None
    if test_files is not None and run.is_main:
        shared = count_shared(train_files, test_files, test_files.root)
    seed_everything(config.seed)
    (name,) = config.checkpoint
    backbone = load_backbone(name, config.feature)
    backbone = replace_input(backbone, size=config.size, crop_fraction=config.crop_fraction)
    refuse_size(backbone, backbone.spec.input.size, backbone.spec.input.size, "pass another --size")
    backbone = backbone.to(run.device)
    head = load_head(name, config.head, config.head_layer).to(run.device) if config.head else None
    train, test = (
        None
        if files is None
        else extract_features(
            backbone,
            files,
            run,
            batch_size=config.batch_size,
            amp=config.amp,
            workers=config.workers,
            on_broken=config.on_broken,
            head=head,
            levels=config.levels,
            cache=config.cache,
            as_stored=config.as_released,
            label=label,
        )
        for label, files in (("train", train_files), ("test", test_files))
    )
    assert train is not None, "there is always a TRAIN set"
    datasets = {"train": train_files.record(broken=len(train.broken))}
    if test_files is not None and test is not None:
        datasets["test"] = test_files.record(broken=len(test.broken), in_train=shared)
    spec = backbone.spec
    parts = [
        f"feature={spec.feature} size={spec.input.size} crop={spec.input.crop_fraction:g}",
        f"resize={spec.input.resize.replace(' ', '-')} dtype={'float32' if config.amp == 'none' else config.amp}",
        f"level={config.level}" if config.level is not None else "",
        f"head={config.head}" if config.head else "",
        f"head-layer={config.head_layer}" if config.head_layer else "",
        f"limit={config.limit}" if config.limit else "",
    ]
    description = " ".join(filter(None, parts))
    return FeatureSets(backbone=backbone, head=head, train=train, test=test, datasets=datasets, description=description)


def load_head(checkpoint: str, name: str, layer: int | None = None) -> nn.Sequential:
    """Load a head that a checkpoint holds under this name, or its first `layer` layers; see `first_layers`.

    Raises:
        ValueError: a backbone name instead of a checkpoint, or no such layer; `CheckpointError` where it holds no such
            head.
    """
    if not is_checkpoint(checkpoint):
        raise ValueError(f"--head {name}: {checkpoint} is not a checkpoint directory, so it has no heads")
    tensors = load_heads(checkpoint, name)
    head = build_head(read_manifest(Path(checkpoint) / MANIFEST).heads[name], tensors)
    return head if layer is None else first_layers(head, layer)


def first_layers(head: nn.Sequential, num_layers: int) -> nn.Sequential:
    """The first layers of a head, each a linear layer and what stands between it and the next one.

    Raises:
        ValueError: the head has fewer layers.

    Reference: SimReg (Navaneet et al., BMVC 2021) evaluates the features inside its four-layer head, whose second layer
    has no batch norm and no ReLU.
    """
    linears = [index for index, module in enumerate(head) if isinstance(module, nn.Linear)]
    if num_layers > len(linears):
        raise ValueError(f"--head-layer is {num_layers}: the head has {len(linears)}; leave it out for the whole head")
    return head[: [*linears, len(head)][num_layers]]


def results_of(config: EvaluationConfig, features: FeatureSets, outcome: Outcome, seconds: float) -> Results:
    """The contents of results.json."""
    (name,) = config.checkpoint
    inputs = {key: one.sha256 for key, one in checkpoint_inputs(name, CHECKPOINT).items()}
    if features.head is not None:
        inputs["head"] = weights_sha256(features.head)
    return Results(
        task=config.task,
        protocol=outcome.protocol,
        datasets=features.datasets,
        checkpoint=CheckpointRecord(
            path=name, sha256=weights_sha256(features.backbone.net), method=checkpoint_method(name)
        ),
        metrics=outcome.metrics,
        seed=config.seed,
        seconds=seconds,
        made_by=made_by(PACKAGE, config_to_dict(config, UNIONS)),
        extra={
            "broken": features.broken,
            "classes": list(features.classes),
            "images": describe_decoding(as_stored=config.as_released),
            "inputs": inputs,
            **outcome.extra,
        },
    )
