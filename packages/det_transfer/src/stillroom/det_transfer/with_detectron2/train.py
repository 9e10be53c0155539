"""Detectron2's loop on our backbone: its trainer, hooks, checkpoints and evaluation loop, from its LazyConfig."""

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillroom.backbone import Backbone, Run
from stillroom.backbone.atomic import write_file
from stillroom.backbone.bridge import Bridge
from stillroom.backbone.run import DivergedError, seed_everything
from stillroom.det_transfer import with_detectron2  # noqa: F401  # first: it says in one sentence what is not installed
from stillroom.det_transfer.backend import Trained
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import DetectionData, read_data
from stillroom.det_transfer.levels import held, share_statistics
from stillroom.det_transfer.record import INITIAL

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of pkg_resources and TorchScript: nothing that a user can change
    import detectron2.data.transforms as T
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import LazyCall as L
    from detectron2.config import LazyConfig, instantiate
    from detectron2.data import build_detection_test_loader
    from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, create_ddp_model, default_writers, hooks
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.solver.build import get_default_optimizer_params
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger
    from omegaconf import DictConfig, OmegaConf

    from stillroom.det_transfer.with_detectron2.hooks import ClipGradients, Rate, RefuseDiverged, SeededSteps
    from stillroom.det_transfer.with_detectron2.images import PictureMapper, SeededLoader, read_records
    from stillroom.det_transfer.with_detectron2.predict import RESOLVED, Collector, load_predictor, predict_all  # noqa: F401  # `Backend`
    from stillroom.det_transfer.with_detectron2.recipe import build_model
    from stillroom.det_transfer.with_detectron2.user_config import (
        adopt_bridge,
        adopt_config,
        check_classes,
        load_user_config,
        read_user_data,
    )

METRICS = "metrics.json"
"""Detectron2's, a line each time."""
PRECISE_BATCHES = 200
LOGGERS = ("detectron2", "fvcore")


def read(config: DetectConfig) -> DetectionData:
    """The images of a run; see `read_data` and `read_user_data`."""
    return read_data(config) if config.framework_config is None else read_user_data(config.framework_config)


def look_ahead(config: DetectConfig, run: Run, data: DetectionData, backbone: Backbone) -> None:
    """Describe the detector, or build a user's own, and throw it away; see `build_model`, `adopt_bridge`."""
    if config.framework_config is None:
        build_config(config, run, backbone, len(data.classes))
        return
    cfg = load_user_config(config.framework_config)
    if cfg.train.amp.enabled and run.device.type == "cpu":
        raise ValueError("the config's train.amp.enabled needs a GPU: Detectron2's mixed precision refuses the CPU")
    try:
        net = instantiate(cfg.model)
    except Exception as error:  # it may be of any class
        raise ValueError(f"the model of {config.framework_config} cannot be built: {error}") from error
    adopt_bridge(backbone.spec, net).load(net, backbone)
    check_classes(net, data.classes)


def train(config: DetectConfig, run: Run, data: DetectionData, backbone: Backbone, go_on: bool) -> Trained:
    """Train a detector from the beginning, or from the run's last state.

    Args:
        config: of a single run.
        run: this process.
        data: its images.
        backbone: its first weights.
        go_on: an earlier life of the run may have left a state.

    Raises:
        ValueError: a backbone that the neck does not fit, a batch larger than the data, a loss that is not finite.
    """
    begin_log(config.out, run)
    if run.world_size > 1 and comm._LOCAL_PROCESS_GROUP is None:
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", run.world_size)))
    seed_everything(config.seed)
    if config.framework_config is None:
        cfg, bridge = build_config(config, run, backbone, len(data.classes))
        net = instantiate(cfg.model)
    else:
        cfg = adopt_config(load_user_config(config.framework_config), config, run)
        net = instantiate(cfg.model)
        bridge = adopt_bridge(backbone.spec, net)
    if run.is_main:
        torch.save({"model": bridge.to_framework(backbone)[0]}, initial_file(config.out))
        LazyConfig.save(cfg, str(config.out / RESOLVED))
    run.wait()
    bridge.load(net, backbone)
    net.to(run.device).train()  # before it is wrapped: what is held wants no gradient
    cfg.optimizer.params.model = net
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    model = create_ddp_model(net, **cfg.train.ddp)
    trainer = build_trainer(cfg, model, loader, optimizer, own=config.framework_config is not None)
    checkpointer = DetectionCheckpointer(model, str(config.out), trainer=trainer)
    steady = SeededSteps(config.seed, run.rank)
    trainer.register_hooks(
        [
            steady,
            ClipGradients(net, config.clip) if config.clip else None,
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            precise(model, cfg, config),
            RefuseDiverged(net, cfg.train.checkpointer.period),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if run.is_main else None,
        ]
    )
    first = 0
    if go_on and checkpointer.has_checkpoint():
        checkpointer.resume_or_load("", resume=True)
        first = trainer.iter + 1
    if run.is_main:
        cut_metrics(config.out / METRICS, first)  # before it is opened
        writers = default_writers(str(config.out), cfg.train.max_iter)
        trainer.register_hooks([hooks.PeriodicWriter(writers, cfg.train.log_period)])
    if isinstance(loader, SeededLoader):
        loader.start = first
    try:
        trainer.train(first, cfg.train.max_iter)
    except FloatingPointError as error:
        kept = "the last good state is kept" if checkpointer.has_checkpoint() else "no state had been saved yet"
        raise DivergedError(f"the loss is not finite at step {trainer.iter + 1}: lower --lr; {kept}") from error
    trainer.reset_data_loader(list)  # its workers end before those of the evaluation begin
    share_statistics(net, run)
    return Trained(
        model=net,
        bridge=bridge,
        seconds=steady.seconds,
        find=lambda images: predict_all(net, config, cfg, images),
    )


def build_config(config: DetectConfig, run: Run, backbone: Backbone, num_classes: int) -> tuple[DictConfig, Bridge]:
    """The whole LazyConfig of a run, and the bridge into its model."""
    on_gpu = run.device.type == "cuda"
    model, bridge = build_model(config, backbone.spec, num_classes, synced=on_gpu and run.world_size > 1)
    masks = config.detector == "mask-rcnn"
    order = model.input_format
    views = [
        L(T.ResizeShortestEdge)(short_edge_length=config.train_sizes, sample_style="choice", max_size=config.max_size),
        L(T.RandomFlip)(horizontal=True),
    ]
    fixed = [L(T.ResizeShortestEdge)(short_edge_length=config.test_size, max_size=config.max_size)]
    own = str(config.out.absolute())
    cfg = OmegaConf.create(
        {
            "model": model,
            "dataloader": {
                "train": L(SeededLoader)(
                    dataset=L(read_records)(run=own, part="train"),
                    mapper=L(PictureMapper)(
                        is_train=True, augmentations=views, image_format=order, use_instance_mask=masks,
                        instance_mask_format="bitmask",
                    ),
                    total_batch_size=config.batch_size, steps=config.steps, seed=config.seed,
                    num_workers=config.workers,
                ),
                "test": L(build_detection_test_loader)(
                    dataset=L(read_records)(run=own, part="val"),
                    mapper=L(PictureMapper)(is_train=False, augmentations=fixed, image_format=order),
                    num_workers=config.workers,
                ),
                "evaluator": L(Collector)(run=own),
            },
            "optimizer": L(torch.optim.SGD)(
                params=L(get_default_optimizer_params)(weight_decay_norm=0.0),
                lr=config.lr, momentum=0.9, weight_decay=config.weight_decay,
            ),
            "lr_multiplier": L(Rate)(steps=config.steps, warmup=config.warmup, drops=list(config.drops)),
            "train": {
                "output_dir": own, "init_checkpoint": str(initial_file(config.out)), "max_iter": config.steps,
                "amp": {"enabled": config.amp != "none"},
                "ddp": {"broadcast_buffers": False, "find_unused_parameters": True,
                        **({} if on_gpu else {"device_ids": None})},
                "checkpointer": {"period": config.save_every, "max_to_keep": 2}, "eval_period": 0,
                "log_period": config.log_every, "device": run.device.type, "seed": config.seed,
            },
        },
        flags={"allow_objects": True},
    )  # fmt: skip
    return cfg, bridge


def build_trainer(cfg: DictConfig, model: nn.Module, loader: Any, optimizer: Any, *, own: bool) -> SimpleTrainer:
    """Detectron2's trainer, whose losses are read back when a line is logged.

    Args:
        cfg: of the run.
        model, loader, optimizer: as it says.
        own: the user's own; its mixed precision is Detectron2's, in float16.
    """
    every = cfg.train.log_period
    if not cfg.train.amp.enabled:
        return SimpleTrainer(model, loader, optimizer, gather_metric_period=every)
    if own:
        return AMPTrainer(model, loader, optimizer, gather_metric_period=every)
    boxes_in_float(model)
    whole = torch.amp.GradScaler("cuda", enabled=False)  # bfloat16 reaches as far as float32
    return AMPTrainer(model, loader, optimizer, gather_metric_period=every, grad_scaler=whole, precision=torch.bfloat16)


def boxes_in_float(model: nn.Module) -> None:
    """Let boxes be cut out of float32 maps: Detectron2 rounds their corners to the maps' type, bfloat16 to 8 pixels."""
    for pooler in model.modules():
        if isinstance(pooler, ROIPooler):
            pooler.register_forward_pre_hook(lambda _, given: ([map_.float() for map_ in given[0]], *given[1:]))


def precise(model: nn.Module, cfg: DictConfig, config: DetectConfig) -> HookBase | None:
    """KDEP's C4 detectors measure with batch norm statistics of the last weights, averaged over 200 batches."""
    if config.legacy == "none" or config.neck != "c4" or held(config) != "nothing":
        return None
    return hooks.PreciseBN(0, model, instantiate(cfg.dataloader.train), min(PRECISE_BATCHES, config.steps))


def begin_log(out: Path, run: Run) -> None:
    """Detectron2's words, on the screen and in OUT/log.txt, and no longer in that of the process's run before."""
    setup_logger.cache_clear()  # it would keep quiet the second time
    for name in LOGGERS:
        for handler in [*logging.getLogger(name).handlers]:
            logging.getLogger(name).removeHandler(handler)
            handler.close()
        setup_logger(str(out), distributed_rank=run.rank, name=name)


def cut_metrics(file: Path, first: int) -> None:
    """Leave out the lines behind the state that a run goes on from, and a half one: they will be written again."""
    if file.exists():
        lines = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        write_file(file, "".join(line for line in lines if json.loads(line)["iteration"] < first))


def initial_file(out: Path) -> Path:
    """The first weights under Detectron2's names."""
    return out / f"{INITIAL}.pth"
