"""What a run leaves: a checkpoint of the trained backbone, predictions, pictures, results.json."""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from stillroom.backbone import Backbone, Data, Results, format_table, save_checkpoint, write_results
from stillroom.backbone.atomic import replace_directory, write_file
from stillroom.backbone.configs import config_to_dict
from stillroom.backbone.finetune.lifecycle import INITIAL as INITIAL
from stillroom.backbone.finetune.lifecycle import initial_sha256
from stillroom.backbone.names import trained_method
from stillroom.backbone.provenance import made_by
from stillroom.backbone.results import CheckpointRecord, percent, read_results
from stillroom.backbone.spec import inherit_licence
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import DetectionData
from stillroom.det_transfer.detections import Detections, as_results
from stillroom.det_transfer.figures import draw_precision, draw_sheet
from stillroom.det_transfer.metrics import measure

PACKAGE = "stillroom-det-transfer"
PROTOCOL = "detection/v1"
CHECKPOINT = "checkpoint"
PREDICTIONS = "predictions.json"
"""What was found on the images that were measured on, in COCO's format of results."""
PER_CLASS = "ap_per_class"
"""Under which results.json keeps the AP of each class."""


def finish(
    config: DetectConfig, data: DetectionData, backbone: Backbone, found: Sequence[Detections], loaded: str,
    seconds: float,
) -> None:  # fmt: skip
    """Write the trained backbone, predictions, pictures, and last results.json, which says that all is there."""
    backbone.spec = replace(backbone.spec, licence=inherit_licence(backbone.spec.licence, config.data_licence))
    settings, method = config_to_dict(config), trained_method(config.name)
    train = data.train.record
    manifest = save_checkpoint(
        config.out / CHECKPOINT, backbone, method=method, package=PACKAGE, config=settings,
        data=Data(count=train.count, fingerprint=train.fingerprint),
    )  # fmt: skip
    measured = measure(data.val, found, data.classes)
    write_file(config.out / PREDICTIONS, json.dumps(as_results(data.val, found, data.category_ids)) + "\n")
    title = f"{config.out.name}: {100 * measured.metrics['AP']:.1f} % AP"
    with replace_directory(config.out / "figures") as aside:
        draw_sheet(aside / "sheet.png", data.val, found, data.classes, title)
        draw_precision(aside / "precision_recall.png", measured, title)
    write_results(
        config.out,
        Results(
            task="detection",
            protocol=protocol(config, data),
            datasets=data.records,
            checkpoint=CheckpointRecord(
                path=str(config.out / CHECKPOINT), sha256=manifest.weights.sha256, method=method
            ),
            metrics=measured.metrics,
            seed=config.seed,
            seconds=seconds,
            made_by=made_by(PACKAGE, settings),
            extra={
                "initial_sha256": initial_sha256(config.out),
                "classes": list(data.classes),
                "loaded": loaded,
                "boxes": {"train": data.train.num_boxes, "test": data.val.num_boxes},
                "left_out": [*data.train.left_out, *data.val.left_out],
                PER_CLASS: measured.per_class,
            },
        ),
    )


def protocol(config: DetectConfig, data: DetectionData) -> str:
    """The versioned id: backend, detector, training, and how images were measured on."""
    if data.own is not None:
        name, digest = Path(data.own.path).name, data.own.fingerprint[:12]
        return f"{PROTOCOL} detectron2 framework-config={name} sha256={digest} weights=last"
    parts = [
        PROTOCOL, data.words, config.backend, f"{config.detector}-{config.neck}", f"norm={config.norm}",
        "fpn-norm=gn" if config.fpn_norm == "gn" else "",
        "frozen" if config.frozen else "",
        f"legacy={config.legacy}" if config.legacy != "none" else "",
        *unusual(config),
        f"steps={config.steps} batch={config.batch_size} rois={config.rois} size={config.test_size} weights=last",
    ]  # fmt: skip
    return " ".join(part for part in parts if part)


def unusual(config: DetectConfig) -> list[str]:
    """Settings that are not the recipe's, for the protocol id; a box that is left out is in no number."""
    usual = {field.name: field.default for field in fields(config)}
    names = ("fpn_dim", "box_dim", "anchor_scale", "max_size", "keep_empty", "on_bad_box")
    told = {name: getattr(config, name) for name in names}
    return [f"{name.replace('_', '-')}={value}" for name, value in told.items() if value != usual[name]]


def summary(path: Path) -> str:
    """What a single run prints at its end: AP per class, and the directory with the one number that matters."""
    found = read_results(path)
    rows = [[name, f"{100 * value:.1f}"] for name, value in found.extra[PER_CLASS].items()]
    more = ", ".join(
        f"{name} {percent(found.metrics, name)}" for name in found.metrics if name.startswith(("AP", "maskAP", "VOC"))
    )
    return (
        f"{found.protocol}\n{found.extra['loaded']}\n{format_table(['class', 'AP, %'], rows)}\n{more}\n"
        f"{path}: {percent(found.metrics, 'AP')} % AP"
    )
