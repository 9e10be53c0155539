"""What a run writes at its end: a checkpoint of the trained backbone, a figure, results.json."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mmengine.config import Config
from torch import Tensor, nn

from stillroom.backbone import Backbone, Data, save_checkpoint
from stillroom.backbone.atomic import replace_directory
from stillroom.backbone.manifest import Head
from stillroom.backbone.names import trained_method
from stillroom.backbone.provenance import made_by
from stillroom.backbone.spec import inherit_licence
from stillroom.finetune.lifecycle import initial_sha256
from stillroom.images.picture import describe_framework_decoding
from stillroom.runs import Results, format_table, write_results
from stillroom.runs.configs import config_to_dict
from stillroom.runs.results import CheckpointRecord, percent, read_results
from stillroom.seg_transfer.bridge import SegBridge
from stillroom.seg_transfer.config import SegmentConfig
from stillroom.seg_transfer.data import SegmentationData
from stillroom.seg_transfer.figures import draw_sheet
from stillroom.seg_transfer.metrics import IOU, UNDEFINED
from stillroom.seg_transfer.recipe import needs_average

PACKAGE = "stillroom-seg-transfer"
PROTOCOL = "segmentation/v1"
CHECKPOINT = "checkpoint"
DECODER = "decoder"
"""The checkpoint's head that holds all of MMSegmentation's model but the backbone."""
BACKBONE = "backbone."
"""Prefix of the backbone's tensors in that model."""
PER_CLASS = "iou_per_class"
"""Key in the `extra` of results.json that holds the IoU of each class, a fraction."""
RESOLVED = "config.py"
"""The file of MMEngine's resolved config."""


def finish(
    config: SegmentConfig,
    data: SegmentationData,
    backbone: Backbone,
    metrics: Mapping[str, float],
    net: nn.Module,
    resolved: Config,
    bridge: SegBridge,
    seconds: float,
) -> None:
    """Write the trained backbone, a figure, and last results.json, which marks a finished run.

    Args:
        config: of the run.
        data: its images.
        backbone: the trained one.
        metrics: as MMSegmentation's test returns them, fractions.
        net: MMSegmentation's trained model.
        resolved: MMEngine's config.
        bridge: into MMSegmentation.
        seconds: of training and evaluation, in total.
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
        heads={DECODER: describe_decoder(net, bridge, data.classes)},
    )
    with replace_directory(config.out / "figures") as folder:
        views = ", drawn from one view" if needs_average(config) else ""
        title = f"{config.out.name}: {100 * metrics['mIoU']:.1f} % mIoU{views}"
        draw_sheet(folder / "sheet.png", net, resolved, data, title)
    write_results(
        config.out,
        Results(
            task="segmentation",
            protocol=protocol(config, data, bridge.strides[-1]),
            datasets=data.records,
            checkpoint=CheckpointRecord(
                path=str(config.out / CHECKPOINT), sha256=manifest.weights.sha256, method=method
            ),
            metrics={name: float(value) for name, value in metrics.items() if not name.startswith(IOU)},
            seed=config.seed,
            seconds=seconds,
            made_by=made_by(PACKAGE, settings),
            not_finite={f"metrics.{name}": UNDEFINED for name, value in metrics.items() if math.isnan(value)},
            extra={
                "initial_sha256": initial_sha256(config.out),
                "classes": list(data.classes),
                "images": describe_framework_decoding(config.framework_config),
                "notes": list(data.notes),
                "absent_from_val": list(data.absent_from_val),
                PER_CLASS: {n.removeprefix(IOU): float(v) for n, v in metrics.items() if n.startswith(IOU)},
            },
        ),
    )


def describe_decoder(net: nn.Module, bridge: SegBridge, classes: tuple[str, ...]) -> tuple[Head, dict[str, Tensor]]:
    """Describe a trained model's decoder for a checkpoint: what it is, and all tensors but the backbone's."""
    tensors = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith(BACKBONE)}
    return Head(kind=DECODER, in_dim=bridge.channels[-1], out_dim=len(classes), classes=classes), tensors


def protocol(config: SegmentConfig, data: SegmentationData, stride: int) -> str:
    """The versioned protocol id: decoder, training, and evaluation.

    Args:
        config: of the run.
        data: its images.
        stride: of the last feature map, pixels.
    """
    if config.framework_config is not None:
        return f"{PROTOCOL} {data.words} weights=last"
    window = f"slide={config.crop}" if config.evaluation == "slide" else "whole"
    parts = [
        PROTOCOL,
        data.words,
        f"{config.head} stride={stride}",
        "atrous=second" if config.atrous == "second" else "",
        "frozen" if config.frozen else "",
        f"main-weight={config.main_weight:g}" if config.main_weight != 1 else "",
        f"aux-weight={config.aux_weight:g}" if config.aux_weight not in (0.4, 0) else "",
        "align-corners" if config.align_corners else "",
        f"steps={config.steps} batch={config.batch_size} crop={config.crop} weights=last",
        window,
        f"channels={config.channels}" if config.channels != 512 and config.head != "linear" else "",
        "flip" if config.flip else "",
        f"scales={config.scales}" if config.scales != (1.0,) else "",
    ]
    return " ".join(part for part in parts if part)


def summary(path: Path) -> str:
    """Format what a single run prints at its end: IoU per class, then its directory and mIoU."""
    results = read_results(path)
    rows = [[name, f"{100 * value:.1f}"] for name, value in results.extra[PER_CLASS].items()]
    table = format_table(["class", "IoU, %"], rows)
    return f"{results.protocol}\n{table}\n{path}: {percent(results.metrics, 'mIoU')} % mIoU"
