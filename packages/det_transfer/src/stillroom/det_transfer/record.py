"""The outputs of a run: a checkpoint of the trained backbone, predictions, figures, results.json."""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from stillroom.backbone import Backbone, Data, save_checkpoint
from stillroom.backbone.atomic import replace_directory, write_file
from stillroom.backbone.names import trained_method
from stillroom.backbone.provenance import made_by
from stillroom.backbone.spec import inherit_licence
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import DetectionData
from stillroom.det_transfer.detections import Detections, to_coco_results
from stillroom.det_transfer.figures import draw_precision, draw_sheet
from stillroom.det_transfer.metrics import compute_metrics
from stillroom.finetune.lifecycle import initial_sha256
from stillroom.images.picture import describe_framework_decoding
from stillroom.runs import Results, format_table, write_results
from stillroom.runs.configs import config_to_dict
from stillroom.runs.results import CheckpointRecord, percent, read_results

PACKAGE = "stillroom-det-transfer"
PROTOCOL = "detection/v1"
CHECKPOINT = "checkpoint"
PREDICTIONS = "predictions.json"
"""The detections in the validation images, in COCO's results format."""
PER_CLASS = "ap_per_class"
"""Key of the AP of each class in results.json."""
CATEGORY_IDS = "category_ids"
"""Key of the data set's ids of the classes in results.json."""


def finish(
    config: DetectConfig,
    data: DetectionData,
    backbone: Backbone,
    predictions: Sequence[Detections],
    loaded: str,
    notes: Sequence[str],
    seconds: float,
) -> None:
    """Write the trained backbone, predictions and figures, then results.json, which marks the run as finished.

    Args:
        config: of a single run.
        data: its images.
        backbone: the trained one.
        predictions: the detections in the validation images.
        loaded: how many tensors came from the checkpoint; see `Bridge.count`.
        notes: sentences about the detector.
        seconds: training time.
    """
    backbone.spec = replace(backbone.spec, licence=inherit_licence(backbone.spec.licence, config.data_licence))
    settings, method = config_to_dict(config), trained_method(config.name)
    train = data.train.record
    manifest = save_checkpoint(
        config.out / CHECKPOINT,
        backbone,
        method=method,
        package=PACKAGE,
        config=settings,
        data=Data(count=train.count, fingerprint=train.fingerprint),
    )
    evaluation = compute_metrics(data.val, predictions, data.classes)
    write_file(config.out / PREDICTIONS, json.dumps(to_coco_results(data.val, predictions, data.category_ids)) + "\n")
    title = f"{config.out.name}: {100 * evaluation.metrics['AP']:.1f} % AP"
    with replace_directory(config.out / "figures") as folder:
        draw_sheet(folder / "sheet.png", data.val, predictions, data.classes, title)
        draw_precision(folder / "precision_recall.png", evaluation, title)
    write_results(
        config.out,
        Results(
            task="detection",
            protocol=protocol(config, data),
            datasets=data.records,
            checkpoint=CheckpointRecord(
                path=str(config.out / CHECKPOINT), sha256=manifest.weights.sha256, method=method
            ),
            metrics=evaluation.metrics,
            seed=config.seed,
            seconds=seconds,
            made_by=made_by(PACKAGE, settings),
            extra={
                "initial_sha256": initial_sha256(config.out),
                "classes": list(data.classes),
                "images": describe_framework_decoding(config.framework_config),
                CATEGORY_IDS: list(data.category_ids or range(1, len(data.classes) + 1)),
                "notes": [*data.notes, *notes],
                "loaded": loaded,
                "boxes": {"train": data.train.num_boxes, "test": data.val.num_boxes},
                "left_out": [*data.train.left_out, *data.val.left_out],
                PER_CLASS: evaluation.per_class,
            },
        ),
    )


def protocol(config: DetectConfig, data: DetectionData) -> str:
    """The versioned protocol id: backend, detector, training and evaluation settings."""
    if data.user_config is not None:
        name, digest = Path(data.user_config.path).name, data.user_config.fingerprint[:12]
        return f"{PROTOCOL} detectron2 framework-config={name} sha256={digest} weights=last"
    parts = [
        PROTOCOL,
        data.name,
        config.backend,
        f"{config.detector}-{config.neck}",
        f"norm={config.norm}",
        "fpn-norm=gn" if config.fpn_norm == "gn" else "",
        "frozen" if config.frozen else "",
        f"legacy={config.legacy}" if config.legacy != "none" else "",
        *non_default_settings(config),
        f"steps={config.steps} batch={config.batch_size} rois={config.rois} size={config.test_size} weights=last",
    ]
    return " ".join(part for part in parts if part)


def non_default_settings(config: DetectConfig) -> list[str]:
    """The settings of the recipe and the data that are not at their defaults, for the protocol id."""
    defaults = {field.name: field.default for field in fields(config)}
    names = ("fpn_dim", "box_dim", "anchor_scale", "max_size", "keep_empty", "on_bad_box", "stride_in_1x1", "voc_base")
    values = {name: getattr(config, name) for name in names}
    return [f"{name.replace('_', '-')}={value}" for name, value in values.items() if value != defaults[name]]


def summary(path: Path) -> str:
    """The text that a finished run prints: AP per class, then the run directory and its AP."""
    results = read_results(path)
    metrics = results.metrics
    rows = [[name, f"{100 * value:.1f}"] for name, value in results.extra[PER_CLASS].items()]
    aps = ", ".join(f"{name} {percent(metrics, name)}" for name in metrics if name.startswith(("AP", "maskAP", "VOC")))
    return (
        f"{results.protocol}\n{results.extra['loaded']}\n{format_table(['class', 'AP, %'], rows)}\n{aps}\n"
        f"{path}: {percent(metrics, 'AP')} % AP"
    )
