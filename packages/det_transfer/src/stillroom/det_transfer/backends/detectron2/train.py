"""Detectron2's training loop on our backbone: its trainer, hooks and checkpoints, from its LazyConfig."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, create_ddp_model, default_writers, hooks
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from torch import nn

from stillroom.backbone import Backbone
from stillroom.backbone.atomic import write_file
from stillroom.backbone.seeds import seed_everything
from stillroom.convert.bridge import Bridge
from stillroom.det_transfer.backends.detectron2.hooks import ClipGradients, RefuseDiverged, SeededSteps
from stillroom.det_transfer.backends.detectron2.images import SeededLoader
from stillroom.det_transfer.backends.detectron2.nets import boxes_in_float32
from stillroom.det_transfer.backends.detectron2.predict import predict_all
from stillroom.det_transfer.backends.detectron2.recipe import build_config, initial_file
from stillroom.det_transfer.backends.detectron2.saved import CONFIG_YAML, RunCheckpointer
from stillroom.det_transfer.backends.detectron2.user_config import (
    adopt_bridge,
    adopt_config,
    describe_differences,
    load_user_config,
)
from stillroom.det_transfer.backends.protocol import TrainedDetector
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import DetectionData
from stillroom.det_transfer.freeze import frozen_part
from stillroom.runs import Run
from stillroom.runs.parallel import broadcast_buffers
from stillroom.runs.run import DivergedError

METRICS = "metrics.json"
"""Detectron2's log of losses, one JSON object per line."""
PRECISE_BATCHES = 200
LOGGERS = ("detectron2", "fvcore")


def train(config: DetectConfig, run: Run, data: DetectionData, backbone: Backbone, resume: bool) -> TrainedDetector:
    """Train a detector from the initial weights, or from the run's last state.

    Args:
        config: of a single run.
        run: this process.
        data: its images.
        backbone: the initial weights.
        resume: whether the run may have left a state.

    Raises:
        ValueError: a backbone that the neck cannot take, a batch larger than the data, a loss that is NaN or infinite.
    """
    # 1. Set up Detectron2's log and its process group; the seed fixes the detector's new weights.
    start_log(config.out, run)
    if run.world_size > 1 and comm._LOCAL_PROCESS_GROUP is None:
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", run.world_size)))
    seed_everything(config.seed)

    # 2. Build the detector, and leave what Detectron2's own tools need to repeat the run.
    cfg, net, bridge, notes = build_net(config, run, data, backbone)
    if run.is_main:
        torch.save({"model": bridge.to_framework(backbone)[0]}, initial_file(config.out))
        LazyConfig.save(cfg, str(config.out / CONFIG_YAML))
    run.wait()

    # 3. Load the initial weights and freeze what stays frozen, before DDP would wait for gradients that never come.
    bridge.load(net, backbone)
    net.to(run.device).train()

    # 4. Build optimiser, data and trainer as the LazyConfig describes them.
    cfg.optimizer.params.model = net
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    model = create_ddp_model(net, **cfg.train.ddp)
    trainer = build_trainer(cfg, model, loader, optimizer, user_config=config.framework_config is not None)
    checkpointer = RunCheckpointer(model, str(config.out), trainer=trainer)

    # 5. Register the hooks, which act around each step in this order.
    seeded_steps = SeededSteps(config.seed, run.rank)
    trainer.register_hooks(
        [
            # Seed what the forward pass draws, and measure the time.
            seeded_steps,
            # Clip the gradient between the backward pass and the optimiser's step.
            ClipGradients(net, config.clip) if config.clip else None,
            # Log the time per step.
            hooks.IterationTimer(),
            # Set the next step's learning rate.
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            # After the last step, recompute KDEP's batch norm statistics.
            build_precise_bn(model, cfg, config),
            # Refuse weights that are NaN or infinite, just before they are saved.
            RefuseDiverged(net, cfg.train.checkpointer.period),
            # Save a state to resume from, and the last weights.
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if run.is_main else None,
        ]
    )

    # 6. Restore the last state: model, optimiser, schedule, step and training time.
    first_step = 0
    if resume and checkpointer.has_checkpoint():
        checkpointer.resume_or_load("", resume=True)
        first_step = trainer.iter + 1

    # 7. Drop the log's lines after that state and open it; start the data at the first step that is left to do.
    if run.is_main:
        trim_metrics(config.out / METRICS, first_step)
        writers = default_writers(str(config.out), cfg.train.max_iter)
        trainer.register_hooks([hooks.PeriodicWriter(writers, cfg.train.log_period)])
    if isinstance(loader, SeededLoader):
        loader.start = first_step

    # Detectron2's loop: in each step it draws a batch, goes forward and backward, and calls the hooks.
    try:
        trainer.train(first_step, cfg.train.max_iter)
    except FloatingPointError as error:
        kept = "the last good state is kept" if checkpointer.has_checkpoint() else "no state had been saved yet"
        raise DivergedError(f"the loss is not finite at step {trainer.iter + 1}: lower --lr; {kept}") from error

    trainer.reset_data_loader(list)  # ends the loader's workers before those of the evaluation start
    broadcast_buffers(net, run)  # every process predicts with the statistics that were saved
    return TrainedDetector(
        model=net,
        bridge=bridge,
        seconds=seeded_steps.seconds,
        predict=lambda images: predict_all(net, config, cfg, images),
        notes=notes,
    )


def build_net(
    config: DetectConfig, run: Run, data: DetectionData, backbone: Backbone
) -> tuple[DictConfig, nn.Module, Bridge, tuple[str, ...]]:
    """Build the detector of a run and the bridge into it, from its settings or from the user's own LazyConfig.

    The last value returned are notes about a user's LazyConfig.
    """
    if config.framework_config is None:
        cfg, bridge = build_config(config, run, backbone, len(data.classes))
        return cfg, instantiate(cfg.model), bridge, ()
    cfg = load_user_config(config.framework_config)
    net = instantiate(cfg.model)
    notes = describe_differences(cfg, net, config, backbone.spec)
    return adopt_config(cfg, config, run), net, adopt_bridge(backbone.spec, net), notes


def build_trainer(
    cfg: DictConfig, model: nn.Module, loader: Any, optimizer: Any, *, user_config: bool
) -> SimpleTrainer:
    """Build Detectron2's trainer, which reads losses back from the device only when it logs a line.

    Args:
        cfg: of the run.
        model, loader, optimizer: built from it.
        user_config: whether `cfg` is a user's own; its mixed precision is then Detectron2's, in float16.
    """
    period = cfg.train.log_period
    if not cfg.train.amp.enabled:
        return SimpleTrainer(model, loader, optimizer, gather_metric_period=period)
    if user_config:
        return AMPTrainer(model, loader, optimizer, gather_metric_period=period)
    boxes_in_float32(model)
    no_scaler = torch.amp.GradScaler("cuda", enabled=False)  # bfloat16 has float32's range
    return AMPTrainer(
        model, loader, optimizer, gather_metric_period=period, grad_scaler=no_scaler, precision=torch.bfloat16
    )


def build_precise_bn(model: nn.Module, cfg: DictConfig, config: DetectConfig) -> HookBase | None:
    """Build the hook of KDEP's C4 detectors that averages the last weights' batch norm statistics over 200 batches."""
    if config.legacy == "none" or config.neck != "c4" or frozen_part(config) != "nothing":
        return None
    return hooks.PreciseBN(0, model, instantiate(cfg.dataloader.train), min(PRECISE_BATCHES, config.steps))


def start_log(out: Path, run: Run) -> None:
    """Send Detectron2's log to the screen and to OUT/log.txt, and close that of the process's previous run."""
    setup_logger.cache_clear()  # it would do nothing the second time
    for name in LOGGERS:
        for handler in [*logging.getLogger(name).handlers]:
            logging.getLogger(name).removeHandler(handler)
            handler.close()
        setup_logger(str(out), distributed_rank=run.rank, name=name)


def trim_metrics(file: Path, first_step: int) -> None:
    """Drop the lines from `first_step` on, which the resumed run writes again, and an incomplete last line."""
    if file.exists():
        lines = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        write_file(file, "".join(line for line in lines if json.loads(line)["iteration"] < first_step))
