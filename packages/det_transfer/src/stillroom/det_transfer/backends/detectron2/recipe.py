"""A run as a LazyConfig of Detectron2, which its own tools accept."""

from pathlib import Path

import detectron2.data.transforms as T
import torch
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from detectron2.solver.build import get_default_optimizer_params
from omegaconf import DictConfig, OmegaConf

from stillroom.backbone import Backbone
from stillroom.convert.bridge import Bridge
from stillroom.det_transfer.backends.detectron2.detectors import build_model
from stillroom.det_transfer.backends.detectron2.hooks import LearningRateSchedule
from stillroom.det_transfer.backends.detectron2.images import PictureMapper, SeededLoader, read_records
from stillroom.det_transfer.backends.detectron2.predict import Collector
from stillroom.det_transfer.config import DetectConfig
from stillroom.finetune.lifecycle import INITIAL
from stillroom.runs import Run
from stillroom.runs.hardware import choose_workers

SAVE_EVERY = 1000
"""Steps between two states where no flag sets them: Detectron2 saves by steps, not by the clock."""


def build_config(config: DetectConfig, run: Run, backbone: Backbone, num_classes: int) -> tuple[DictConfig, Bridge]:
    """Describe a whole run as a LazyConfig, and build the bridge into its model.

    Args:
        config: of a single run.
        run: this process.
        backbone: the initial backbone.
        num_classes: without background.

    Raises:
        ValueError: a backbone that the neck cannot take.
    """
    synced = run.device.type == "cuda" and run.world_size > 1
    model, bridge = build_model(config, backbone.spec, num_classes, synced=synced)
    settings = {
        "model": model,
        "dataloader": describe_data(config, model.input_format),
        "optimizer": L(torch.optim.SGD)(
            params=L(get_default_optimizer_params)(weight_decay_norm=0.0),
            lr=config.lr,
            momentum=0.9,
            weight_decay=config.weight_decay,
        ),
        "lr_multiplier": L(LearningRateSchedule)(steps=config.steps, warmup=config.warmup, drops=list(config.drops)),
        "train": describe_training(config, run),
    }
    return OmegaConf.create(settings, flags={"allow_objects": True}), bridge


def describe_data(config: DetectConfig, channel_order: str) -> dict[str, DictConfig]:
    """Describe the loaders of a run, and its evaluator.

    Args:
        config: of a single run.
        channel_order: RGB or BGR.
    """
    out = str(config.out.absolute())
    augmentations = [
        L(T.ResizeShortestEdge)(short_edge_length=config.train_sizes, sample_style="choice", max_size=config.max_size),
        L(T.RandomFlip)(horizontal=True),
    ]
    resize = [L(T.ResizeShortestEdge)(short_edge_length=config.test_size, max_size=config.max_size)]
    train_mapper = L(PictureMapper)(
        is_train=True,
        augmentations=augmentations,
        image_format=channel_order,
        use_instance_mask=config.detector == "mask-rcnn",
        instance_mask_format="bitmask",
    )
    train = L(SeededLoader)(
        dataset=L(read_records)(run=out, part="train"),
        mapper=train_mapper,
        total_batch_size=config.batch_size,
        steps=config.steps,
        seed=config.seed,
        num_workers=choose_workers(config.workers),
        order=config.order,
    )
    test = L(build_detection_test_loader)(
        dataset=L(read_records)(run=out, part="val"),
        mapper=L(PictureMapper)(is_train=False, augmentations=resize, image_format=channel_order),
        num_workers=choose_workers(config.workers),
    )
    return {"train": train, "test": test, "evaluator": L(Collector)(run=out)}


def describe_training(config: DetectConfig, run: Run) -> dict[str, object]:
    """Describe the training loop of a run, under the keys of Detectron2's own configs."""
    on_gpu = run.device.type == "cuda"
    ddp: dict[str, object] = {"broadcast_buffers": False, "find_unused_parameters": True}
    return {
        "output_dir": str(config.out.absolute()),
        "init_checkpoint": str(initial_file(config.out)),
        "max_iter": config.steps,
        "amp": {"enabled": config.amp != "none"},
        "ddp": ddp if on_gpu else {**ddp, "device_ids": None},
        "checkpointer": {"period": config.save_every or SAVE_EVERY, "max_to_keep": 2},
        "eval_period": 0,
        "log_period": config.log_every,
        "device": run.device.type,
        "seed": config.seed,
    }


def initial_file(out: Path) -> Path:
    """The file of the initial weights under Detectron2's names."""
    return out / f"{INITIAL}.pth"
