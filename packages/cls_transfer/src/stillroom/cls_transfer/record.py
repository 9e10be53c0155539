"""What a run leaves: a checkpoint with its classifier, results.json, pictures."""

from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from stillroom.backbone import Data, Results, Run, save_checkpoint, write_results
from stillroom.backbone.atomic import replace_directory
from stillroom.backbone.configs import config_to_dict
from stillroom.backbone.heads import describe_head
from stillroom.backbone.names import trained_method
from stillroom.backbone.provenance import made_by
from stillroom.backbone.results import CheckpointRecord, DatasetRecord, percent, read_results
from stillroom.backbone.run_files import read_metrics
from stillroom.backbone.spec import inherit_licence
from stillroom.cls_transfer.config import UNIONS, ClassifyConfig
from stillroom.cls_transfer.data import Sets
from stillroom.cls_transfer.metrics import Predictions
from stillroom.cls_transfer.model import Classifier
from stillroom.cls_transfer.state import TrainState

PACKAGE = "stillroom-cls-transfer"
PROTOCOL = "classification/v2"
CHECKPOINT = "checkpoint"
HEAD = "classifier"


def finish(
    config: ClassifyConfig,
    run: Run,
    sets: Sets,
    model: Classifier,
    learner: TrainState,
    tested: Predictions,
) -> None:
    """Write the checkpoint, its classifier as a head, pictures, and last results.json, which says that all is there."""
    if not run.is_main:
        return
    backbone, classes = model.backbone, sets.train.classes
    backbone.spec = replace(backbone.spec, licence=inherit_licence(backbone.spec.licence, config.data_licence))
    settings = config_to_dict(config, UNIONS)
    (name,) = config.checkpoint
    method = trained_method(name)
    manifest = save_checkpoint(
        config.out / CHECKPOINT, backbone, method=method, package=PACKAGE, config=settings,
        data=Data(count=len(sets.train), fingerprint=sets.train.fingerprint),
        heads={HEAD: (describe_head(model.head, classes), head_tensors(model))},
    )  # fmt: skip
    from stillroom.backbone.figures import draw_confusion  # noqa: PLC0415  # matplotlib, when there is something to draw
    from stillroom.cls_transfer.figures import draw_curves  # noqa: PLC0415

    metrics = tested.metrics()
    title = f"{config.out.name}: {100 * metrics['top1']:.1f} % top-1"
    with replace_directory(config.out / "figures") as aside:
        draw_confusion(aside / "confusion.png", tested.labels, tested.predicted, classes, title)
        draw_curves(aside / "curves.png", read_metrics(config.out), title)
    broken = {"train": sorted(learner.broken), "test": tested.broken, "val": learner.val_broken}
    datasets = {role: DatasetRecord.of(files, broken=len(broken[role])) for role, files in sets.by_role.items()}
    if sets.val is not None:
        metrics["val_top1"] = learner.best.top1
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
            seconds=learner.seconds,
            made_by=made_by(PACKAGE, settings),
            extra={
                "broken": [*broken["train"], *broken["val"], *broken["test"]],
                "best": asdict(learner.best) if sets.val is not None else None,
                "initial_sha256": learner.initial,
                "per_class": tested.by_class(classes),
            },
        ),
    )


def head_tensors(model: Classifier) -> dict[str, Tensor]:
    """The head's tensors by the places of its layers; those of a linear layer alone have no place in their names."""
    tensors = model.head.state_dict()
    return {key.removeprefix("0."): value for key, value in tensors.items()} if len(model.head) == 1 else tensors


def protocol(config: ClassifyConfig, sets: Sets, model: Classifier) -> str:
    """The versioned id: what was learnt from, for how long, which weights were chosen how, and how images were seen."""
    spec = model.backbone.spec.input
    chosen = config.choose if sets.val is not None else "last"
    parts = [
        PROTOCOL,
        sets.words,
        f"epochs={config.epochs} weights={chosen}{' average' if config.ema else ''}",
        f"freeze={config.freeze}" if config.freeze else "",
        f"size={spec.size} crop={spec.crop_fraction:g}",
        "" if config.normalise else "not-normalised",
    ]
    return " ".join(part for part in parts if part)


def summary(path: Path) -> str:
    """The last line a run prints: its directory and the one number that matters."""
    return f"{path}: {percent(read_results(path).metrics, 'top1')} % top-1"
