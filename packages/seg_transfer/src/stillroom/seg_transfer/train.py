"""Train a segmentation model: images, initial weights, bridge, MMEngine's Runner, metrics, results."""

import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.models.segmentors import SegTTAModel
from mmseg.registry import METRICS, MODELS, RUNNERS
from PIL import Image
from torch import nn

from stillroom.backbone import Backbone, load_checkpoint
from stillroom.backbone.errors import keeps_traceback
from stillroom.backbone.initial import initial_backbone, refuse_size
from stillroom.finetune import lifecycle
from stillroom.finetune.lifecycle import INITIAL
from stillroom.images.decode import exif_orientation
from stillroom.images.loaders import unwrap_worker_errors
from stillroom.runs import Run
from stillroom.runs.inputs import names_input
from stillroom.runs.results import DatasetRecord
from stillroom.seg_transfer import plugin  # noqa: F401  # registers the names of the config
from stillroom.seg_transfer.bridge import SegBridge, adopt_bridge, build_bridge
from stillroom.seg_transfer.config import SegmentConfig
from stillroom.seg_transfer.data import SegmentationData, digest, read_data, read_framework, read_framework_config
from stillroom.seg_transfer.recipe import adopt_config, build_config, build_model, needs_average
from stillroom.seg_transfer.record import RESOLVED, finish
from stillroom.seg_transfer.reproducible import SECONDS
from stillroom.seg_transfer.states import SCHEME, latest_weights


@dataclass(frozen=True, kw_only=True)
class Plan(lifecycle.Prepared):
    """What a run begins with: its images, the bridge into MMSegmentation, and MMEngine's resolved config."""

    data: SegmentationData
    bridge: SegBridge
    resolved: Config


def prepare(config: SegmentConfig, run: Run, saved: Path | None) -> Plan:
    """Read the initial weights and the images of a single run, and plan it; nothing is written.

    Args:
        config: of a single run: one checkpoint, one seed.
        run: this process.
        saved: the initial weights that a resumed run kept; None: those of `--checkpoint`.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    if saved is not None:
        backbone, _ = load_checkpoint(saved)
    else:
        backbone = initial_backbone(config.name, config.like, config.seed)
    return build_plan(config, run, backbone)


def build_plan(config: SegmentConfig, run: Run, backbone: Backbone) -> Plan:
    """Plan a run by our recipe, or by a user's config.

    Raises:
        ValueError: images, a config or a backbone that do not fit.
    """
    initial = initial_file(config.out)
    if config.framework_config is not None:
        user = read_framework_config(config.framework_config)
        data, bridge = read_framework(user), adopt_bridge(backbone.spec, user.model.backbone)
        try_model(user, bridge, backbone, data)
        records = {**data.records, "framework_config": record_of(config.framework_config, user)}
        resolved = adopt_config(config, user, initial, run.world_size)
    else:
        bridge = build_bridge(
            backbone.spec, output_stride=config.output_stride, atrous=config.atrous, frozen=config.frozen
        )
        data = read_data(config)
        try_sizes(config, backbone, bridge, data)
        records = data.records
        norm = "SyncBN" if run.world_size > 1 and run.device.type == "cuda" else "BN"
        resolved = build_config(config, bridge, data, initial, norm, run.world_size)
    inputs = {"classes": names_input(data.classes)}
    return Plan(backbone=backbone, records=records, inputs=inputs, data=data, bridge=bridge, resolved=resolved)


def read_records(config: SegmentConfig) -> Mapping[str, DatasetRecord]:
    """Read the records of a run's data as they are now, a user's config included.

    Raises:
        ValueError: see `read_data`, `read_framework_config` and `read_framework`.
    """
    if config.framework_config is None:
        return read_data(config).records
    user = read_framework_config(config.framework_config)
    return {**read_framework(user).records, "framework_config": record_of(config.framework_config, user)}


def record_of(file: Path, user: Config) -> DatasetRecord:
    """The record of a user's config, by which a change of it is noticed."""
    return DatasetRecord(path=str(file), count=1, fingerprint=digest(user))


def try_model(user: Config, bridge: SegBridge, backbone: Backbone, data: SegmentationData) -> None:
    """Build a user's model, optimiser and metric before the run, and discard them.

    Raises:
        ValueError: what MMSegmentation says of them; a backbone that does not fit; a wrong number of classes.
    """
    settings = user.to_dict()
    settings["model"]["backbone"].pop("init_cfg", None)
    part = "model"
    try:
        net: Any = MODELS.build(settings[part])
        part = "optim_wrapper"
        build_optim_wrapper(net, settings[part])
        part = "test_evaluator"
        METRICS.build(settings[part])
    except Exception as error:  # user code may raise any class
        if keeps_traceback(error):
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"the {part} of {user.filename} cannot be built: {reason[0]}") from error
    bridge.load(net.backbone, backbone)
    heads = net.decode_head if isinstance(net.decode_head, nn.ModuleList) else [net.decode_head]
    num_classes = heads[-1].num_classes
    if num_classes != len(data.classes):
        raise ValueError(
            f"the model of {user.filename} predicts {num_classes} classes, the data has {len(data.classes)}"
        )


def try_sizes(config: SegmentConfig, backbone: Backbone, bridge: SegBridge, data: SegmentationData) -> None:
    """Check before the run, by passes, that the model accepts images of the sizes that it will get.

    The passes of the whole model compute shapes alone, so that they take neither time nor memory.

    Raises:
        ValueError: with the size, and the image that has it.
    """
    advice = f"try --crop {backbone.spec.input.size} --evaluation slide"
    if bridge.config["type"] == "StillroomBackbone":
        refuse_size(backbone, config.crop, config.crop, advice)
    model = build_model(config, bridge, len(data.classes), Path(), "BN")
    model["backbone"].pop("init_cfg")
    init_default_scope("mmseg")  # the registry in which its parts are looked up
    net: Any = MODELS.build(model).to("meta").eval()
    for (height, width), what in {
        (config.crop, config.crop): "--crop",
        **evaluated_sizes(config, bridge, data),
    }.items():
        try:
            with torch.no_grad():
                net(torch.zeros(1, 3, height, width, device="meta"), mode="tensor")
        except NotImplementedError:  # an operation without shapes: nothing is known
            return
        except (AssertionError, RuntimeError, ValueError) as error:  # the libraries' own, about the size
            if keeps_traceback(error):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{backbone.spec.name} with {config.head} takes no images of {width} x {height} px ({reason}), as "
                f"{what} needs: {advice}"
            ) from error


def evaluated_sizes(
    config: SegmentConfig, bridge: SegBridge, data: SegmentationData
) -> dict[tuple[int, int], str | Path]:
    """Find extreme sizes of the validation images as the net gets them: (height, width) -> an image of that size."""
    sizes: dict[tuple[int, int], str | Path] = {}
    for file, _ in data.val.pairs:
        with Image.open(file) as image:
            width, height = image.size[::-1] if exif_orientation(image) >= 5 else image.size
        if config.evaluation == "slide":
            height, width = min(height, config.crop), min(width, config.crop)
        padded = (-(-height // bridge.divisor) * bridge.divisor, -(-width // bridge.divisor) * bridge.divisor)
        sizes.setdefault(padded, file)
    extremes = {next(iter(sizes)), min(sizes), min(sizes, key=lambda size: size[1]), max(sizes, key=math.prod)}
    return {size: sizes[size] for size in extremes}


def train(config: SegmentConfig, run: Run, plan: Plan, resume: bool, trusted: bool = False) -> None:
    """Train by MMEngine's Runner, evaluate, bring the backbone back, and write what a run leaves.

    Args:
        config: of a single run.
        run: this process.
        plan: its images, bridge and config.
        resume: whether the run may have saved a state.
        trusted: the state may run code; see `build_runner`.

    Raises:
        ValueError: an image that cannot be read, a loss that is NaN or infinite.
    """
    # 1. The initial weights under MMSegmentation's names, and the config, for MMEngine and for MMSegmentation's tools.
    if run.is_main:
        for note in plan.data.notes:
            print(note, file=sys.stderr)
        torch.save(plan.bridge.to_framework(plan.backbone)[0], initial_file(config.out))
        plan.resolved.dump(config.out / RESOLVED)
    run.wait()
    # 2. MMEngine's training loop. Our hooks assert the initial weights, seed each step, and stop a run that diverges.
    average = needs_average(config)
    runner = build_runner(plan.resolved, run, resume, average, trusted)
    with unwrap_worker_errors():
        model: Any = runner.train()
    # 3. Evaluation of the last weights, over several views of each image if the config says so.
    trained = time.perf_counter()
    net = model.module if is_model_wrapper(model) else model
    if average:
        runner.model = SegTTAModel(module=net)
    with unwrap_worker_errors():
        metrics = runner.test()
    # 4. The backbone back in our names; figures and results.
    if run.is_main:
        backbone = plan.bridge.from_framework(net.backbone.state_dict(), plan.backbone)
        seconds = runner.message_hub.get_info(SECONDS, 0.0) + time.perf_counter() - trained
        finish(config, plan.data, backbone, metrics, net, plan.resolved, plan.bridge, seconds)
    run.wait()


def build_runner(resolved: Config, run: Run, resume: bool, average: bool = False, trusted: bool = False) -> Runner:
    """Build MMEngine's Runner of a config, on the run's device.

    MMEngine uses a GPU wherever torch sees one, so for the CPU they are hidden. It keeps logs and counters under the
    experiment's name, so each runner gets its own.

    Args:
        resolved: MMEngine's config.
        run: this process.
        resume: from the last whole state, if there is one.
        average: evaluate several views of each image.
        trusted: MMEngine's own reader loads the state, which unpickles whatever is in it.

    Raises:
        ValueError: see `load_state`.
    """
    if run.device.type == "cpu" and torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    changes: dict[str, Any] = {"resume": False, "experiment_name": uuid4().hex[:8]}
    if resume and (latest := latest_weights(Path(resolved.work_dir))) is not None:
        changes |= {"resume": True, "load_from": str(latest) if trusted else f"{SCHEME}{latest}"}
    if run.device.type == "cpu" and run.world_size > 1:
        unused = resolved.get("find_unused_parameters", False)
        changes["model_wrapper_cfg"] = {"type": "OnCpus", "broadcast_buffers": False, "find_unused_parameters": unused}
    settings = Config(resolved.to_dict() | changes, format_python_code=False)
    if average:
        settings.test_dataloader.dataset.pipeline = settings.tta_pipeline
    kind = settings.get("runner_type", "Runner")
    return RUNNERS.get(kind).from_cfg(settings)


def initial_file(out: Path) -> Path:
    """The file of the initial weights under MMSegmentation's names."""
    return out / f"{INITIAL}.pth"
