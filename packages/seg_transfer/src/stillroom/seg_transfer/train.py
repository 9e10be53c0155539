"""The way of a run: images, first weights, bridge, MMEngine's Runner, what is measured, what leaves."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from mmseg.models.segmentors import SegTTAModel
from mmseg.registry import METRICS, MODELS, RUNNERS
from PIL import Image
from torch import nn

from stillroom.backbone import Backbone, Run, load_checkpoint, save_checkpoint
from stillroom.backbone.atomic import write_file
from stillroom.backbone.configs import config_to_json, reread_config
from stillroom.backbone.flags import DeviceName
from stillroom.backbone.initial import initial_backbone
from stillroom.backbone.loading import unwrap_worker_errors
from stillroom.backbone.names import checkpoint_method
from stillroom.backbone.results import DatasetRecord
from stillroom.backbone.run_files import CONFIG
from stillroom.backbone.sweep import keep_fingerprints, refuse_changed
from stillroom.seg_transfer import plugin  # noqa: F401  # registers what the config names
from stillroom.seg_transfer.bridge import SegBridge, adopt_bridge, build_bridge
from stillroom.seg_transfer.config import SegmentConfig, check
from stillroom.seg_transfer.data import SegmentationData, digest, read_data, read_framework, read_framework_config
from stillroom.seg_transfer.recipe import adopt_config, build_config, needs_average
from stillroom.seg_transfer.record import INITIAL, PACKAGE, RESOLVED, finish, latest_weights
from stillroom.seg_transfer.reproducible import SECONDS


def train_one(config: SegmentConfig, run: Run) -> None:
    """Train and measure a segmentation model.

    Args:
        config: of a single run: one checkpoint, one seed.
        run: this process.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    backbone, plan = prepare(config, run)
    run.wait()  # every process has looked for config.json before the first one writes it
    if run.is_main:
        save_checkpoint(config.out / INITIAL, backbone, method=checkpoint_method(config.name), package=PACKAGE)
        keep_fingerprints(config.out, plan.records)
        write_file(config.out / CONFIG, config_to_json(config))  # last: a run that has it can go on
    run.wait()
    train(config, run, backbone, plan, go_on=False)


def prepare(config: SegmentConfig, run: Run) -> tuple[Backbone, "Plan"]:
    """The first weights of a single run, and what it will do; nothing is written.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    check(config, run.world_size, run.device.type == "cpu")
    backbone = initial_backbone(config.name, config.like, config.seed)
    return backbone, build_plan(config, run, backbone)


def resume_one(
    path: Path,
    *,
    run: Run | None = None,
    device: DeviceName | None = None,
    workers: int | None = None,
    log_every: int | None = None,
) -> None:
    """Go on with a run from its last state; on the CPU the weights end equal to the bit to a run never stopped.

    Args:
        path: the run directory.
        run: this process; None: it is yet to be started, and closed.
        device, workers, log_every: replace what the run began with; None keeps it.

    Raises:
        ValueError: no run directory; a framework config that changed since.
    """
    config = reread_config(path, SegmentConfig, device=device, workers=workers, log_every=log_every)
    here = Run.start(config.device) if run is None else run
    check(config, here.world_size, here.device.type == "cpu")
    backbone, _ = load_checkpoint(path / INITIAL)
    plan = build_plan(config, here, backbone)
    refuse_changed(path, plan.records)
    train(config, here, backbone, plan, go_on=True)
    if run is None:
        here.close()


@dataclass(frozen=True)
class Plan:
    """What a run will do: the images, the bridge into MMSegmentation, MMEngine's config; and what must not change."""

    data: SegmentationData
    bridge: SegBridge
    resolved: Config
    records: dict[str, DatasetRecord]


def build_plan(config: SegmentConfig, run: Run, backbone: Backbone) -> Plan:
    """By our recipe, or by a user's own config."""
    initial = initial_file(config.out)
    if config.framework_config is not None:
        own = read_framework_config(config.framework_config)
        data, bridge = read_framework(own), adopt_bridge(backbone.spec, own.model.backbone)
        try_model(own, bridge, backbone, data)
        record = DatasetRecord(path=str(config.framework_config), count=1, fingerprint=digest(own))
        resolved = adopt_config(config, own, initial, run.world_size)
        return Plan(data, bridge, resolved, {**data.records, "framework_config": record})
    bridge = build_bridge(backbone.spec, output_stride=config.output_stride, atrous=config.atrous, frozen=config.frozen)
    data = read_data(config)
    try_sizes(config, backbone, bridge, data)
    norm = "SyncBN" if run.world_size > 1 and run.device.type == "cuda" else "BN"
    return Plan(data, bridge, build_config(config, bridge, data, initial, norm, run.world_size), data.records)


def try_model(own: Config, bridge: SegBridge, backbone: Backbone, data: SegmentationData) -> None:
    """Build a user's own model, optimiser and metric before the run, and throw them away.

    Raises:
        ValueError: what MMSegmentation says of them; a net that does not fit; other classes than the data have.
    """
    settings = own.to_dict()
    settings["model"]["backbone"].pop("init_cfg", None)
    part = "model"
    try:
        net: Any = MODELS.build(settings[part])
        part = "optim_wrapper"
        build_optim_wrapper(net, settings[part])
        part = "test_evaluator"
        METRICS.build(settings[part])
    except Exception as error:  # it may be of any class
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"the {part} of {own.filename} cannot be built: {said[0]}") from error
    bridge.load(net.backbone, backbone)
    heads = net.decode_head if isinstance(net.decode_head, nn.ModuleList) else [net.decode_head]
    told = heads[-1].num_classes
    if told != len(data.classes):
        raise ValueError(f"the model of {own.filename} tells {told} classes apart, its data have {len(data.classes)}")


@torch.no_grad()
def try_sizes(config: SegmentConfig, backbone: Backbone, bridge: SegBridge, data: SegmentationData) -> None:
    """Look before the run whether a wrapped net takes images of the sizes that it will get: some take one size alone.

    Raises:
        ValueError: with the size.
    """
    if bridge.config["type"] != "StillroomBackbone":
        return
    sides = [(config.crop, config.crop)]
    if config.evaluation == "whole":
        with Image.open(data.val.pairs[0][0]) as image:
            height, width = (-(-side // bridge.divisor) * bridge.divisor for side in (image.height, image.width))
        sides.append((height, width))
    for height, width in sides:
        try:
            backbone.eval()(torch.zeros(1, 3, height, width))
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"{backbone.spec.name} takes no images of {width} x {height} px ({error}): "
                f"try --crop {backbone.spec.input.size} --evaluation slide"
            ) from error


def train(config: SegmentConfig, run: Run, backbone: Backbone, plan: Plan, go_on: bool) -> None:
    """Hand the run to MMEngine, measure, bring the backbone back."""
    if run.is_main:
        torch.save(plan.bridge.to_framework(backbone)[0], initial_file(config.out))
        plan.resolved.dump(config.out / RESOLVED)
    run.wait()
    average = needs_average(config)
    runner = build_runner(plan.resolved, run, go_on, average)
    with unwrap_worker_errors():
        model: Any = runner.train()
    measured = time.perf_counter()
    net = model.module if is_model_wrapper(model) else model
    if average:
        runner.model = SegTTAModel(module=net)
    with unwrap_worker_errors():
        metrics = runner.test()
    if run.is_main:
        trained = plan.bridge.from_framework(net.backbone.state_dict(), backbone)
        seconds = runner.message_hub.get_info(SECONDS, 0.0) + time.perf_counter() - measured
        finish(config, plan.data, trained, metrics, net, plan.resolved, plan.bridge, seconds)
    run.wait()


def build_runner(resolved: Config, run: Run, go_on: bool, average: bool = False) -> Runner:
    """MMEngine's Runner of a config, on the run's device; its test reads several views of an image where asked.

    MMEngine takes a GPU wherever torch sees one, so the CPU is asked for by hiding them. It keeps logs and counters by
    the experiment's name, so each runner has its own.
    """
    if run.device.type == "cpu" and torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    own: dict[str, Any] = {"resume": False, "experiment_name": uuid4().hex[:8]}
    if go_on and (latest := latest_weights(Path(resolved.work_dir))) is not None:
        own |= {"resume": True, "load_from": str(latest)}
    if run.device.type == "cpu" and run.world_size > 1:
        unused = resolved.get("find_unused_parameters", False)
        own["model_wrapper_cfg"] = {
            "type": "OnCpus", "broadcast_buffers": False, "find_unused_parameters": unused
        }  # fmt: skip
    settings = Config(resolved.to_dict() | own, format_python_code=False)
    if average:
        settings.test_dataloader.dataset.pipeline = settings.tta_pipeline
    kind = settings.get("runner_type", "Runner")
    return RUNNERS.get(kind).from_cfg(settings)


def initial_file(out: Path) -> Path:
    """The first weights under MMSegmentation's names."""
    return out / f"{INITIAL}.pth"
