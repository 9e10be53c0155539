"""A user's own LazyConfig: its model, data and schedule, our backbone's weights."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig, instantiate
from detectron2.data import Metadata, MetadataCatalog
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, OmegaConf
from pycocotools import mask as rle
from torch import nn

from stillroom.backbone import BackboneSpec, Run, build_backbone
from stillroom.backbone.atomic import refuse_missing
from stillroom.backbone.bridge import UNUSED, Bridge
from stillroom.backbone.image_files import from_paths
from stillroom.backbone.keys import Rule, rename
from stillroom.backbone.results import DatasetRecord
from stillroom.det_transfer.annotations import Annotated, Box, Images, encode
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import DetectionData, refuse_empty
from stillroom.det_transfer.record import INITIAL
from stillroom.det_transfer.with_detectron2.nets import StillroomBackbone, native_depth, resnet_rules

PARTS = (
    "model", "dataloader.train.dataset", "dataloader.test.dataset", "dataloader.test.mapper", "optimizer.params",
    "lr_multiplier", "train.max_iter", "train.log_period", "train.checkpointer.period", "train.amp.enabled",
    "train.ddp",
)  # fmt: skip


def load_user_config(file: Path) -> DictConfig:
    """A LazyConfig.

    Raises:
        ValueError: no such file, or one that is no whole LazyConfig.
    """
    refuse_missing(file)
    try:
        cfg = LazyConfig.load(str(file))
    except Exception as error:  # it may be any program
        raise ValueError(f"{file} cannot be read as a LazyConfig: {error}") from error
    settings = OmegaConf.create({}) if cfg is None else cfg
    if lacks := [part for part in PARTS if OmegaConf.select(settings, part) is None]:
        raise ValueError(f"{file} has no {lacks[0]}: a LazyConfig of Detectron2 was expected, with {', '.join(PARTS)}")
    return cfg


def adopt_config(cfg: DictConfig, config: DetectConfig, run: Run) -> DictConfig:
    """The same, in our run directory, from our weights, on our device."""
    cfg.train.update(
        output_dir=str(config.out), init_checkpoint=str(config.out / f"{INITIAL}.pth"), device=run.device.type,
        seed=config.seed,
    )  # fmt: skip
    if run.device.type == "cpu":
        cfg.train.ddp.device_ids = None
    return cfg


def adopt_bridge(spec: BackboneSpec, model: nn.Module) -> Bridge:
    """The way from our backbone into a model that somebody else has described.

    Args:
        spec: of our backbone.
        model: as it was built.

    Raises:
        ValueError: a backbone without key rules, or one that the net does not fit.
    """
    parts: Any = model
    place, net = "backbone.", parts.backbone
    for inner in ("bottom_up", "net"):
        if isinstance(getattr(net, inner, None), nn.Module) and not isinstance(net, StillroomBackbone):
            place, net = f"{place}{inner}.", getattr(net, inner)
    if isinstance(net, StillroomBackbone):
        if net.net.spec.name != spec.name:
            raise ValueError(f"the config's backbone is {net.net.spec.name}, the checkpoint is {spec.name}")
        return Bridge(spec=spec, rules=(Rule(r"(.*)", rf"{place}net.net.\1"),), prefixes=(place,))
    if not isinstance(net, ResNet) or native_depth(spec) is None:
        raise ValueError(f"the config's backbone is a {type(net).__name__}, which has no rules for {spec.name}")
    if any(block.conv1.stride != (1, 1) for block in model.modules() if isinstance(block, BottleneckBlock)):
        raise ValueError(
            "the config's ResNet has its strides in 1x1 convolutions, ours has not: say stride_in_1x1=False"
        )
    c4 = isinstance(getattr(parts, "roi_heads", None), Res5ROIHeads)
    head = "roi_heads.res5." if c4 else None
    rules, known = resnet_rules(place, head, frozen=False), set(model.state_dict())
    places = (place, head) if head else (place,)
    return Bridge(spec=spec, rules=(*uncounted(spec, rules, known), *rules), prefixes=places)


def uncounted(spec: BackboneSpec, rules: tuple[Rule, ...], known: set[str]) -> tuple[Rule, ...]:
    """Rules that put the counters of norms aside which are frozen there, and have none."""
    own = build_backbone(spec.name, arguments=spec.arguments).net.state_dict()
    theirs = rename(own, rules, spec.name).tensors
    absent = [ours for ours, there in zip(own, theirs, strict=True) if "num_batches" in ours and there not in known]
    return tuple(Rule(f"({re.escape(name)})", rf"{UNUSED}\1") for name in absent)


def read_user_data(file: Path) -> DetectionData:
    """The images that a LazyConfig names.

    Raises:
        ValueError: files that are not there, classes that nobody names, no boxes.
    """
    cfg, parts = load_user_config(file), {}
    own = DatasetRecord(path=str(file), count=1, fingerprint=sha256(file.read_bytes()).hexdigest())
    for role in ("train", "test"):
        dataset = cfg.dataloader[role].dataset
        try:
            parts[role] = from_records(instantiate(dataset), areas_of(dataset) if role == "test" else {})
        except (FileNotFoundError, AssertionError, KeyError) as error:
            raise ValueError(f"the {role} images of the config cannot be read: {error!r}") from error
    told = next(iter(metadata_of(cfg.dataloader.test.dataset)), Metadata())
    classes = told.get("thing_classes", None)
    if classes is None:
        raise ValueError("the config's test data set has no names of classes (thing_classes)")
    labels = told.get("thing_dataset_id_to_contiguous_id", None)
    data = DetectionData(
        classes=tuple(classes), train=parts["train"], val=parts["test"], own=own,
        category_ids=None if labels is None else tuple(sorted(labels, key=labels.__getitem__)),
    )  # fmt: skip
    refuse_empty(data)
    return data


def metadata_of(dataset: Mapping[str, Any]) -> list[Metadata]:
    """What Detectron2 knows of the data sets that a part of the config names, in their order."""
    names = dataset.get("names", ())
    return [MetadataCatalog.get(name) for name in ([names] if isinstance(names, str) else names)]


def areas_of(dataset: Mapping[str, Any]) -> dict[tuple[int | float, ...], float]:
    """Areas of objects by image id and box, where a JSON in COCO's format says them: Detectron2's records do not."""
    areas = {}
    for metadata in metadata_of(dataset):
        if (file := metadata.get("json_file", None)) is None:
            continue
        with PathManager.open(file) as opened:
            content = json.load(opened)
        for entry in content.get("annotations", []) if isinstance(content, dict) else []:
            area = entry.get("area")
            if isinstance(area, int | float) and 0 <= area < math.inf:
                areas[entry["image_id"], *entry["bbox"]] = float(area)
    return areas


def check_classes(model: nn.Module, classes: Sequence[str]) -> None:
    """Refuse a model that tells apart more classes than the data have, or fewer.

    Raises:
        ValueError: with both numbers.
    """
    parts: Any = model
    own = getattr(getattr(parts, "roi_heads", parts), "num_classes", len(classes))
    if own != len(classes):
        raise ValueError(
            f"the config's model tells {own} classes apart, its data have {len(classes)}: {', '.join(classes)}"
        )


def from_records(records: list[dict[str, Any]], areas: Mapping[tuple[int | float, ...], float]) -> Images:
    """Detectron2's records as images of ours.

    Args:
        records: as its catalog has them.
        areas: of objects by image id and box; those of others are those of their masks or boxes.

    Raises:
        ValueError: there are none.
    """
    if not records:
        raise ValueError("the config's data set has no images")
    rows = []
    for record in records:
        boxes = []
        for entry in record.get("annotations", []):
            x, y, width, height = BoxMode.convert(list(entry["bbox"]), entry["bbox_mode"], BoxMode.XYWH_ABS)
            mask = entry.get("segmentation")
            mask = encode(mask, record["width"], record["height"]) if mask else None
            own = rle.area(mask) if mask else width * height
            boxes.append(
                Box(
                    x=float(x), y=float(y), width=float(width), height=float(height), label=entry["category_id"],
                    crowd=bool(entry.get("iscrowd", 0)), mask=mask, name="",
                    area=float(areas.get((record["image_id"], *entry["bbox"]), own)),
                )
            )  # fmt: skip
        file = Path(record["file_name"]).absolute()
        rows.append(
            Annotated(
                id=record["image_id"], file=file, width=record["width"], height=record["height"], boxes=tuple(boxes)
            )
        )
    return Images(root=from_paths([row.file for row in rows]).root, rows=tuple(rows))
