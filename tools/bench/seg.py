"""seg_transfer's training step against MMSegmentation with its own config."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import IterBasedTrainLoop, Runner
from mmseg.registry import LOOPS
from PIL import Image

from bench.config import Seg
from bench.spread import median_interval
from stillroom.backbone.initial import initial_backbone
from stillroom.runs import Run
from stillroom.seg_transfer import SegmentConfig
from stillroom.seg_transfer.train import build_plan, build_runner, initial_file

NET = "random:torchvision/resnet18"


@LOOPS.register_module()
class StepByStep(IterBasedTrainLoop):
    """MMEngine's training loop, whose caller decides when the next step runs."""

    def run(self) -> torch.nn.Module:
        """Prepare training, and leave the steps to the caller."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        return self.runner.model

    def step(self) -> float:
        """Read a batch and train on it; returns seconds."""
        began = time.perf_counter()
        self.run_iter(next(self.dataloader_iterator))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began


def figures(settings: Seg) -> dict[str, Any]:
    """Milliseconds per step of both, the median ratio with its 95 % interval, microseconds of our own code alone."""
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "data", settings.crop)
        ours, theirs = (build_ready_runner(settings, Path(folder), ours=ours) for ours in (True, False))
        seconds: dict[str, list[float]] = {"ours": [], "reference": []}
        for pair in range(settings.warmup + settings.pairs):
            order = [("ours", ours), ("reference", theirs)]
            for name, runner in order if pair % 2 else order[::-1]:
                spent = runner.train_loop.step()
                if pair >= settings.warmup:
                    seconds[name].append(spent)
        alone = own_microseconds(settings, ours)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["reference"], strict=True)]
    return {
        "ms_per_step": {name: 1000 * statistics.median(values) for name, values in seconds.items()},
        "time_ratio_median": statistics.median(ratios),
        "time_ratio_interval_95": median_interval(ratios),
        "own_microseconds_per_step": alone,
        "speedup": [1 / ratio for ratio in ratios],
    }


def build_ready_runner(settings: Seg, folder: Path, *, ours: bool) -> Runner:
    """A Runner before its first step; the reference has MMSegmentation's own parts."""
    out = folder / ("ours" if ours else "reference")
    config = SegmentConfig(
        checkpoint=(NET,),
        data=folder / "data",
        out=out,
        head="fcn",
        channels=64,
        output_stride=32,
        crop=settings.crop,
        batch_size=settings.batch,
        steps=10_000,
        save_every=10_000,
        log_every=50,
        workers=0,
        rotate=0,
        blur=0,
    )
    run = Run.start()
    backbone = initial_backbone(NET, None, seed=0)
    plan = build_plan(config, run, backbone)
    out.mkdir()
    torch.save(plan.bridge.to_framework(backbone)[0], initial_file(out))
    framework = plan.resolved.to_dict()
    framework["train_cfg"]["type"] = "StepByStep"
    if not ours:
        framework["model"]["backbone"] = {
            "type": "ResNet",
            "depth": 18,
            "init_cfg": framework["model"]["backbone"]["init_cfg"],
        }
        framework["custom_hooks"] = []
        loader = framework["train_dataloader"]
        dataset = loader["dataset"]["dataset"]
        resize = {
            "type": "RandomResize",
            "scale": (settings.crop, settings.crop),
            "ratio_range": config.scale,
            "keep_ratio": True,
        }
        theirs = {"LoadPicture": {"type": "LoadImageFromFile"}, "ScaleBy": resize}
        pipeline = [theirs.get(view["type"], view) for view in dataset["pipeline"]]
        loader |= {"sampler": {"type": "InfiniteSampler"}, "dataset": {**dataset, "pipeline": pipeline}}
    runner = build_runner(Config(framework), run, resume=False)
    runner.train()
    return runner


def own_microseconds(settings: Seg, runner: Runner) -> float:
    """Median microseconds that our hooks and seeds take per step."""
    hooks = [hook for hook in runner.hooks if type(hook).__module__.startswith("stillroom")]
    dataset, times = runner.train_dataloader.dataset, []
    outputs = {"loss": torch.zeros(())}
    for step in range(200):
        began = time.perf_counter()
        for hook in hooks:
            hook.before_train_iter(runner, step)
            hook.after_train_iter(runner, step, None, outputs)
        for index in range(settings.batch):
            dataset.seed_for(index * len(dataset))
        times.append(1e6 * (time.perf_counter() - began))
    return statistics.median(times)


def draw(root: Path, side: int, num_images: int = 16) -> None:
    """Write images of noise, with masks of four classes."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for folder in ("images", "labels"):
            (root / folder / part).mkdir(parents=True)
        for number in range(num_images):
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / part / f"{number:02d}.jpg")
            mask = np.kron(rng.integers(0, 4, (4, 4), dtype=np.uint8), np.ones((side // 4, side // 4), np.uint8))
            padded = np.zeros((side, side), np.uint8)
            padded[: mask.shape[0], : mask.shape[1]] = mask
            Image.fromarray(padded).save(root / "labels" / part / f"{number:02d}.png")
    (root / "classes.txt").write_text("background\na\nb\nc\n")
