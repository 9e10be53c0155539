"""det_transfer's training step against Detectron2 with its own loader."""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.config import Det
from bench.spread import median_interval
from stillroom.backbone.atomic import write_file
from stillroom.backbone.initial import initial_backbone
from stillroom.det_transfer import DetectConfig
from stillroom.det_transfer.backends import find_backend
from stillroom.runs import Run
from stillroom.runs.configs import config_to_json
from stillroom.runs.run_files import CONFIG

NET = "random:torchvision/resnet18"


def figures(settings: Det) -> dict[str, Any]:
    """Milliseconds per step of both, the median ratio with its 95 % interval, microseconds of our own code alone."""
    find_backend("detectron2")
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "data", settings.side)
        ours, theirs = (train_steps(settings, Path(folder), ours=ours) for ours in (True, False))
        seconds: dict[str, list[float]] = {"ours": [], "reference": []}
        for pair in range(settings.warmup + settings.pairs):
            order = [("ours", ours), ("reference", theirs)]
            for name, steps in order if pair % 2 else order[::-1]:
                spent = next(steps)
                if pair >= settings.warmup:
                    seconds[name].append(spent)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["reference"], strict=True)]
    return {
        "ms_per_step": {name: 1000 * statistics.median(values) for name, values in seconds.items()},
        "time_ratio_median": statistics.median(ratios),
        "time_ratio_interval_95": median_interval(ratios),
        "own_microseconds_per_step": own_microseconds(),
        "speedup": [1 / ratio for ratio in ratios],
    }


def train_steps(settings: Det, folder: Path, *, ours: bool) -> Iterator[float]:
    """Run a trainer step by step, yielding seconds; the reference has Detectron2's own loader, and no hook of ours."""
    from detectron2.config import LazyCall as L  # noqa: PLC0415  # only this benchmark needs it
    from detectron2.config import instantiate  # noqa: PLC0415
    from detectron2.data import DatasetMapper, build_detection_train_loader  # noqa: PLC0415
    from detectron2.engine import SimpleTrainer, hooks  # noqa: PLC0415
    from detectron2.utils.events import EventStorage  # noqa: PLC0415

    from stillroom.det_transfer.backends.detectron2.hooks import RefuseDiverged, SeededSteps  # noqa: PLC0415
    from stillroom.det_transfer.backends.detectron2.recipe import build_config  # noqa: PLC0415

    out = folder / ("ours" if ours else "reference")
    config = DetectConfig(
        checkpoint=(NET,),
        data=folder / "data",
        out=out,
        fpn_dim=64,
        box_dim=128,
        rois=32,
        train_sizes=(settings.side,),
        test_size=settings.side,
        batch_size=settings.batch,
        steps=10_000,
        workers=0,
    )
    write_file(out / CONFIG, config_to_json(config))
    run = Run.start()
    backbone = initial_backbone(NET, None, seed=0)
    cfg, bridge = build_config(config, run, backbone, 1)
    model = instantiate(cfg.model).to(run.device)
    if ours:
        bridge.load(model, backbone)
    else:
        theirs = cfg.dataloader.train
        cfg.dataloader.train = L(build_detection_train_loader)(
            dataset=theirs.dataset,
            mapper={**theirs.mapper, "_target_": DatasetMapper},
            total_batch_size=settings.batch,
            num_workers=0,
            aspect_ratio_grouping=False,
        )
    cfg.optimizer.params.model = model
    trainer = SimpleTrainer(
        model, instantiate(cfg.dataloader.train), instantiate(cfg.optimizer), gather_metric_period=20
    )
    own_hooks = [SeededSteps(0, 0), RefuseDiverged(model, cfg.train.checkpointer.period)] if ours else []
    schedule = hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier))
    trainer.register_hooks([*own_hooks, schedule])
    trainer.iter, trainer.start_iter, trainer.max_iter = 0, 0, config.steps
    with EventStorage(0) as trainer.storage:
        trainer.before_train()
    while True:
        began = time.perf_counter()
        with trainer.storage:
            trainer.before_step()
            trainer.run_step()
            trainer.after_step()
        trainer.iter += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        yield time.perf_counter() - began


def own_microseconds() -> float:
    """Median microseconds of the hook that seeds a step."""
    from types import SimpleNamespace  # noqa: PLC0415

    from stillroom.det_transfer.backends.detectron2.hooks import SeededSteps  # noqa: PLC0415

    hook, times = SeededSteps(0, 0), []
    hook.trainer = SimpleNamespace(iter=0)
    for step in range(200):
        hook.trainer.iter = step
        began = time.perf_counter()
        hook.before_step()
        hook.after_step()
        times.append(1e6 * (time.perf_counter() - began))
    return statistics.median(times)


def draw(root: Path, side: int, num_images: int = 16) -> None:
    """Write images of noise with one bright block each, and their annotations."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for part in ("train", "val"):
        (root / "images" / part).mkdir(parents=True)
        content: dict[str, list[dict[str, Any]]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "block"}],
        }
        for number in range(1, num_images + 1):
            pixels = rng.integers(0, 200, (side, side, 3), dtype=np.uint8)
            x, y, edge = (int(value) for value in rng.integers(side // 8, side // 3, 3))
            pixels[y : y + edge, x : x + edge] += 55
            Image.fromarray(pixels).save(root / "images" / part / f"{number:02d}.jpg")
            content["images"].append({"id": number, "file_name": f"{number:02d}.jpg", "width": side, "height": side})
            box = {"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, edge, edge], "iscrowd": 0}
            content["annotations"].append(box)
        (root / "annotations" / f"{part}.json").write_text(json.dumps(content))
