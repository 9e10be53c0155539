"""A user's own LazyConfig: its model, data and schedule, with our backbone's weights."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import Metadata, MetadataCatalog
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, OmegaConf
from pycocotools import mask as rle
from torch import nn

from stillroom.backbone import Backbone, BackboneSpec, build_backbone
from stillroom.backbone.atomic import refuse_missing
from stillroom.backbone.errors import keeps_traceback
from stillroom.convert.bridge import UNUSED, Bridge
from stillroom.convert.framework_nets import detectron2_rules, native_depth
from stillroom.convert.keys import Rule, rename
from stillroom.det_transfer.annotations import AnnotatedImage, Box, Images, encode_mask
from stillroom.det_transfer.backends.detectron2.detectors import normalization
from stillroom.det_transfer.backends.detectron2.images import as_records
from stillroom.det_transfer.backends.detectron2.nets import StillroomBackbone
from stillroom.det_transfer.backends.detectron2.recipe import initial_file
from stillroom.det_transfer.backends.detectron2.saved import load_lazy_config
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import DetectionData, refuse_empty
from stillroom.images.source import from_paths
from stillroom.runs import Run
from stillroom.runs.results import DatasetRecord

REQUIRED_KEYS = (
    "model",
    "dataloader.train.dataset",
    "dataloader.test.dataset",
    "dataloader.test.mapper",
    "optimizer.params",
    "lr_multiplier",
    "train.max_iter",
    "train.log_period",
    "train.checkpointer.period",
    "train.amp.enabled",
    "train.ddp",
)
USED_KEYS = {
    "dataloader.": {"train", "test"},
    "train.": {"max_iter", "log_period", "checkpointer", "amp", "ddp"},
}
"""What of a user's config applies, by section; of its variables, those that a run of Detectron2 reads."""
FEATURE_TOLERANCE, PIXEL_TOLERANCE = 1e-3, 0.1
"""Largest difference that is rounding: of two nets' features, over the largest one; of mean and std, pixel values from
0 to 255."""


def load_user_config(file: Path) -> DictConfig:
    """Load a user's LazyConfig and check that it has every key that a run needs.

    Raises:
        ValueError: no such file, or not a complete LazyConfig.
    """
    refuse_missing(file)
    try:
        cfg = load_lazy_config(file)
    except Exception as error:  # the file is a program, which may raise anything
        if keeps_traceback(error):
            raise
        raise ValueError(f"{file} cannot be read as a LazyConfig: {error}") from error
    settings = OmegaConf.create({}) if cfg is None else cfg
    if missing := [key for key in REQUIRED_KEYS if OmegaConf.select(settings, key) is None]:
        raise ValueError(
            f"{file} has no {missing[0]}: expected a LazyConfig of Detectron2 with {', '.join(REQUIRED_KEYS)}"
        )
    return cfg


def adopt_config(cfg: DictConfig, config: DetectConfig, run: Run) -> DictConfig:
    """Set a user's config to our run directory, initial weights, seed and device, in place."""
    cfg.train.update(
        output_dir=str(config.out),
        init_checkpoint=str(initial_file(config.out)),
        device=run.device.type,
        seed=config.seed,
    )
    if run.device.type == "cpu":
        cfg.train.ddp.device_ids = None
    return cfg


def adopt_bridge(spec: BackboneSpec, model: nn.Module) -> Bridge:
    """Build the bridge from our backbone into the model of a user's config.

    Args:
        spec: of our backbone.
        model: the user's, built.

    Raises:
        ValueError: a model whose backbone has no key rules, or is another net than ours.
    """
    parts: Any = model
    prefix, net = find_body(model)
    if isinstance(net, StillroomBackbone):
        theirs = net.net.spec
        if theirs.name != spec.name:
            raise ValueError(f"the config's backbone is {theirs.name}, the checkpoint is {spec.name}")
        if dict(theirs.arguments) != dict(spec.arguments):
            raise ValueError(
                f"the config builds {spec.name} with the arguments {dict(theirs.arguments)}, the checkpoint has "
                f"{dict(spec.arguments)}: pass the checkpoint's as `arguments`"
            )
        return Bridge(spec=spec, rules=(Rule(r"(.*)", rf"{prefix}net.net.\1"),), prefixes=(prefix,))
    if not isinstance(net, ResNet) or native_depth(spec) is None:
        raise ValueError(f"the config's backbone is a {type(net).__name__}, which has no rules for {spec.name}")
    if any(block.conv1.stride != (1, 1) for block in model.modules() if isinstance(block, BottleneckBlock)):
        raise ValueError(
            "the config's ResNet has its strides in 1x1 convolutions, ours in 3x3: set stride_in_1x1=False in it"
        )
    c4 = isinstance(getattr(parts, "roi_heads", None), Res5ROIHeads)
    head = "roi_heads.res5." if c4 else None
    rules, model_names = detectron2_rules(prefix, head), set(model.state_dict())
    prefixes = (prefix, head) if head else (prefix,)
    return Bridge(spec=spec, rules=(*counter_rules(spec, rules, model_names), *rules), prefixes=prefixes)


def find_body(model: nn.Module) -> tuple[str, Any]:
    """The net in a detector's backbone, without a pyramid around it, and the prefix of its tensors."""
    parts: Any = model
    prefix, net = "backbone.", parts.backbone
    for inner in ("bottom_up", "net"):
        if isinstance(getattr(net, inner, None), nn.Module) and not isinstance(net, StillroomBackbone):
            prefix, net = f"{prefix}{inner}.", getattr(net, inner)
    return prefix, net


@torch.no_grad()
def check_features(model: nn.Module, backbone: Backbone) -> None:
    """Check that a user's net, with the checkpoint's weights, computes the checkpoint's features.

    All tensors may fit a net whose layers have other settings: dilation, groups, padding, an activation.

    Raises:
        ValueError: a level that differs, or that the checkpoint does not have.
    """
    _, net = find_body(model)
    mode, spec = net.training, backbone.spec
    side = spec.input.size
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    maps = dict(zip([level.stride for level in spec.levels], backbone.eval()(images).maps, strict=True))
    for name, map_ in net.eval()(images).items():
        stride = net.output_shape()[name].stride
        ours = maps.get(stride)
        off = math.inf
        if ours is not None and ours.shape == map_.shape:
            off = float((ours - map_).abs().max() / ours.abs().max())
        if not off <= FEATURE_TOLERANCE:
            raise ValueError(
                f"the config's backbone does not compute the features of {spec.name} from its weights: {name}, of "
                f"stride {stride}, differs by {100 * off:.0f} %: build it with the checkpoint's layers (dilation, "
                f"groups, activation)"
            )
    net.train(mode)


def try_image(cfg: DictConfig, model: nn.Module, images: Images, file: Path) -> None:
    """Check that a user's model takes an image, by a forward pass; nothing is written.

    Raises:
        ValueError: the config's mapper or model fails on it.
    """
    mode = model.training
    (record,) = as_records(replace(images, rows=images.rows[:1]))
    try:
        with torch.no_grad():
            model.eval()([instantiate(cfg.dataloader.test.mapper)(record)])
    except Exception as error:  # a user's program may raise anything
        if keeps_traceback(error):
            raise
        raise ValueError(f"the model of {file} fails on {record['file_name']}: {error}") from error
    model.train(mode)


def describe_differences(
    cfg: DictConfig, model: nn.Module, config: DetectConfig, spec: BackboneSpec
) -> tuple[str, ...]:
    """Describe how a user's config normalises images otherwise than the checkpoint, and what of it has no effect.

    Args:
        cfg: the user's, as it was read.
        model: built from it.
        config: of the run.
        spec: of the checkpoint.
    """
    parts: Any = model
    expected, differ = normalization(config, spec), []
    order, theirs = expected["input_format"], getattr(parts, "input_format", None)
    if theirs != order:
        differ.append(f"input_format is {theirs or 'not known'}, the checkpoint's {order}")
    for role in ("train", "test"):
        key = f"dataloader.{role}.mapper.image_format"
        if (read := OmegaConf.select(cfg, key)) not in (None, theirs):
            differ.append(f"{key} is {read}, the model's input_format {theirs or 'not known'}")
    for name in ("pixel_mean", "pixel_std"):
        buffer = getattr(parts, name, None)
        found = None if buffer is None else [round(value, 3) for value in buffer.flatten().tolist()]
        values = [round(value, 3) for value in expected[name]][:: 1 if theirs in (order, None) else -1]
        if found is None or not np.allclose(found, values, rtol=0, atol=PIXEL_TOLERANCE):
            differ.append(f"{name} is {found or 'not known'}, the checkpoint's {values} in that order of channels")
    notes = []
    if differ:
        notes.append(f"the config does not normalise images as the checkpoint does: {'; '.join(differ)}")
    sections = {"dataloader.": cfg.dataloader, "train.": cfg.train}
    unused = [
        section + str(key)
        for section, used in USED_KEYS.items()
        for key, value in sections[section].items()
        if key not in used and value
    ]
    if unused:
        notes.append(
            f"these settings of the config have no effect: {', '.join(unused)}. Weights, seed, device and directory "
            f"are the run's; it is evaluated once, after the last step, with COCO's and VOC's metrics"
        )
    return tuple(notes)


def counter_rules(spec: BackboneSpec, rules: tuple[Rule, ...], model_names: set[str]) -> tuple[Rule, ...]:
    """Rules that put aside the batch counters of norms that are frozen in the model, where they have no counter."""
    state = build_backbone(spec.name, arguments=spec.arguments).net.state_dict()
    renamed = rename(state, rules, spec.name).tensors
    pairs = zip(state, renamed, strict=True)
    absent = [ours for ours, theirs in pairs if "num_batches" in ours and theirs not in model_names]
    return tuple(Rule(f"({re.escape(name)})", rf"{UNUSED}\1") for name in absent)


def read_user_data(file: Path) -> DetectionData:
    """Read the images that a user's LazyConfig names.

    Raises:
        ValueError: missing files, no class names, no boxes.
    """
    cfg, parts = load_user_config(file), {}
    record = DatasetRecord(
        path=str(file), count=1, fingerprint=sha256(file.read_bytes()).hexdigest(), content=hash_settings(cfg)
    )
    for role in ("train", "test"):
        dataset = cfg.dataloader[role].dataset
        try:
            records = instantiate(dataset)
            areas = areas_of(dataset) if role == "test" else {}
        except Exception as error:  # a user's program may raise anything
            if keeps_traceback(error):
                raise
            raise ValueError(f"the {role} images of {file} cannot be read: {type(error).__name__}: {error}") from error
        parts[role] = images = from_records(records, areas)
        if missing := [row.file for row in images.rows if not row.file.is_file()]:
            total = len(images)
            raise ValueError(
                f"{len(missing)} of {total} {role} images of {file} are missing, the first is {missing[0]}"
            )
    metadata = next(iter(metadata_of(cfg.dataloader.test.dataset)), Metadata())
    classes = metadata.get("thing_classes", None)
    if classes is None:
        raise ValueError("the config's test data set has no class names: set thing_classes in its metadata")
    labels = metadata.get("thing_dataset_id_to_contiguous_id", None)
    data = DetectionData(
        classes=tuple(classes),
        train=parts["train"],
        val=parts["test"],
        user_config=record,
        category_ids=None if labels is None else tuple(sorted(labels, key=labels.__getitem__)),
    )
    refuse_empty(data)
    return data


def hash_settings(cfg: DictConfig) -> str:
    """Hash the settings of a config together with those that it imports; functions and objects by their names."""

    def name(value: Any) -> str:
        return value.__qualname__ if hasattr(value, "__qualname__") else type(value).__qualname__

    settings = OmegaConf.to_container(cfg, resolve=False)
    return sha256(json.dumps(settings, sort_keys=True, default=name).encode()).hexdigest()


def metadata_of(dataset: Mapping[str, Any]) -> list[Metadata]:
    """Detectron2's metadata of the data sets that a dataset config names, in their order."""
    names = dataset.get("names", ())
    return [MetadataCatalog.get(name) for name in ([names] if isinstance(names, str) else names)]


def areas_of(dataset: Mapping[str, Any]) -> dict[tuple[int | float, ...], float]:
    """Areas of objects by image id and box, from JSONs in COCO's format: Detectron2's records leave them out."""
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
    """Refuse a model whose number of classes is not that of the data.

    Raises:
        ValueError: with both numbers.
    """
    parts: Any = model
    num_classes = getattr(getattr(parts, "roi_heads", parts), "num_classes", len(classes))
    if num_classes != len(classes):
        raise ValueError(
            f"the config's model predicts {num_classes} classes, its data has {len(classes)}: {', '.join(classes)}"
        )


def from_records(records: list[dict[str, Any]], areas: Mapping[tuple[int | float, ...], float]) -> Images:
    """Convert Detectron2's records to our images.

    Args:
        records: from Detectron2's catalog.
        areas: of objects by image id and box; for the others, the area of their mask or box is used.

    Raises:
        ValueError: there are no records.
    """
    if not records:
        raise ValueError("the config's data set has no images")
    rows = []
    for record in records:
        boxes = []
        for entry in record.get("annotations", []):
            x, y, width, height = BoxMode.convert(list(entry["bbox"]), entry["bbox_mode"], BoxMode.XYWH_ABS)
            mask = entry.get("segmentation")
            mask = encode_mask(mask, record["width"], record["height"]) if mask else None
            area = rle.area(mask) if mask else width * height
            boxes.append(
                Box(
                    x=float(x),
                    y=float(y),
                    width=float(width),
                    height=float(height),
                    label=entry["category_id"],
                    crowd=bool(entry.get("iscrowd", 0)),
                    mask=mask,
                    name="",
                    area=float(areas.get((record["image_id"], *entry["bbox"]), area)),
                )
            )
        file = Path(record["file_name"]).absolute()
        rows.append(
            AnnotatedImage(
                id=record["image_id"], file=file, width=record["width"], height=record["height"], boxes=tuple(boxes)
            )
        )
    return Images(root=from_paths([row.file for row in rows]).root, rows=tuple(rows))
