"""What a run writes at its end: a checkpoint with its classifier, figures, results.json."""

from dataclasses import asdict, replace
from pathlib import Path

from stillroom.backbone import Data, save_checkpoint
from stillroom.backbone.atomic import replace_directory
from stillroom.backbone.heads import describe_head
from stillroom.backbone.names import trained_method
from stillroom.backbone.provenance import made_by
from stillroom.backbone.spec import inherit_licence
from stillroom.cls_transfer.config import CIFAR100_INPUT, UNIONS, ClassifyConfig, fixed_input
from stillroom.cls_transfer.data import Sets
from stillroom.cls_transfer.initial import HEAD
from stillroom.cls_transfer.metrics import Predictions
from stillroom.cls_transfer.model import Classifier, head_tensors
from stillroom.cls_transfer.state import TrainState
from stillroom.images.picture import describe_decoding
from stillroom.runs import Results, Run, write_results
from stillroom.runs.configs import config_to_dict
from stillroom.runs.results import CheckpointRecord, percent, read_results
from stillroom.runs.run_files import read_metrics

PACKAGE = "stillroom-cls-transfer"
PROTOCOL = "classification/v2"
CHECKPOINT = "checkpoint"
DIVERGED = "diverged.txt"
"""Why a run of a sweep was left out."""


def finish(
    config: ClassifyConfig,
    run: Run,
    sets: Sets,
    model: Classifier,
    state: TrainState,
    predictions: Predictions,
) -> None:
    """Write the checkpoint with its classifier as a head, figures, and last results.json, which marks a finished run.

    Args:
        config: of the run.
        run: this process; only the main one writes.
        sets: its images.
        model: the selected weights.
        state: at the last step.
        predictions: of `model` for the test images.
    """
    if not run.is_main:
        return
    backbone, classes = model.backbone, sets.train.classes
    backbone.spec = replace(backbone.spec, licence=inherit_licence(backbone.spec.licence, config.data_licence))
    settings = config_to_dict(config, UNIONS)
    method = trained_method(config.name)
    manifest = save_checkpoint(
        config.out / CHECKPOINT,
        backbone,
        method=method,
        package=PACKAGE,
        config=settings,
        data=Data(count=len(sets.train), fingerprint=sets.train.fingerprint),
        heads={HEAD: (describe_head(model.head, classes), head_tensors(model))},
    )
    from stillroom.cls_transfer.figures import draw_curves  # noqa: PLC0415
    from stillroom.runs.figures import draw_confusion  # noqa: PLC0415  # matplotlib, only when it draws

    metrics = predictions.metrics()
    title = f"{config.out.name}: {100 * metrics['top1']:.1f} % top-1"
    with replace_directory(config.out / "figures") as folder:
        draw_confusion(folder / "confusion.png", predictions.labels, predictions.predicted, classes, title)
        draw_curves(folder / "curves.png", read_metrics(config.out), title)
    broken = {"train": sorted(state.broken), "test": predictions.broken, "val": state.val_broken}
    datasets = {
        role: files.record(broken=len(broken[role]), in_train=sets.in_train.get(role))
        for role, files in sets.by_role.items()
    }
    if sets.val is not None:
        metrics["val_top1"] = state.best.top1
    write_results(
        config.out,
        Results(
            task="classification",
            protocol=protocol(config, sets, model),
            datasets=datasets,
            checkpoint=CheckpointRecord(
                path=str(config.out / CHECKPOINT), sha256=manifest.weights.sha256, method=method
            ),
            metrics=metrics,
            seed=config.seed,
            seconds=state.seconds,
            made_by=made_by(PACKAGE, settings),
            extra={
                "images": describe_decoding(as_stored=config.as_stored),
                "broken": [*broken["train"], *broken["val"], *broken["test"]],
                "best": asdict(state.best) if sets.val is not None else None,
                "initial_sha256": state.initial,
                "per_class": predictions.by_class(classes),
            },
        ),
    )


def protocol(config: ClassifyConfig, sets: Sets, model: Classifier) -> str:
    """The versioned protocol id: training images, epochs, selection of the weights, input of the net."""
    spec, fixed = model.backbone.spec.input, fixed_input(config)
    normalised_by = "cifar100-statistics" if fixed == CIFAR100_INPUT else "not-normalised"
    selection = config.choose if sets.val is not None else "last"
    parts = [
        PROTOCOL,
        sets.words,
        f"epochs={config.epochs} weights={selection}{' average' if config.ema else ''}",
        f"freeze={config.freeze}" if config.freeze else "",
        f"size={spec.size} crop={spec.crop_fraction:g}",
        normalised_by if fixed else "",
        f"test-every={config.val_every}" if config.choose == "best-on-test" and config.val_every > 1 else "",
    ]
    return " ".join(part for part in parts if part)


def summary(path: Path) -> str:
    """Format the last line that a run prints: its directory and its top-1."""
    return f"{path}: {percent(read_results(path).metrics, 'top1')} % top-1"
