"""The benchmark of seg_transfer: a training step against MMSegmentation run from its own config."""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import IterBasedTrainLoop, Runner
from mmseg.registry import LOOPS
from PIL import Image

from stillroom.backbone import Run
from stillroom.backbone.initial import initial_backbone
from stillroom.seg_transfer import SegmentConfig
from stillroom.seg_transfer.train import build_plan, build_runner, initial_file

NET = "random:torchvision/resnet18"


@LOOPS.register_module()
class ByHand(IterBasedTrainLoop):
    """MMEngine's loop, one step at a time."""

    def run(self) -> torch.nn.Module:
        """Get ready, and leave the steps to the caller."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        return self.runner.model

    def step(self) -> float:
        """Read a batch and train on it; seconds."""
        began = time.perf_counter()
        self.run_iter(next(self.dataloader_iterator))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began


@dataclass(frozen=True)
class Seg:
    """FCN on ResNet-18, undilated, drawn images: our backbone, sampler, views and hooks against MMSegmentation's own.

    Undilated, unturned and not blurred, because both then compute the same: our dilation touches convolutions that
    MMSegmentation's leaves out, and its own recipes know no blur.
    """

    pairs: int = 60
    """Steps of each side, interleaved."""
    warmup: int = 4
    """Steps of each side that are not counted."""
    crop: int = 96
    """Side of training crops, pixels."""
    batch: int = 8
    """Images per step."""

    def figures(self) -> dict[str, Any]:
        """Milliseconds per step of both, the median ratio with its 95 % interval, our own microseconds."""
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder) / "data", self.crop)
            ours, theirs = (self.ready(Path(folder), own=own) for own in (True, False))
            seconds: dict[str, list[float]] = {"ours": [], "reference": []}
            for pair in range(self.warmup + self.pairs):
                order = [("ours", ours), ("reference", theirs)]
                for name, runner in order if pair % 2 else order[::-1]:
                    spent = runner.train_loop.step()
                    if pair >= self.warmup:
                        seconds[name].append(spent)
            own_us = self.own_microseconds(ours)
        ratios = [a / b for a, b in zip(seconds["ours"], seconds["reference"], strict=True)]
        return {
            "ms_per_step": {name: 1000 * statistics.median(values) for name, values in seconds.items()},
            "time_ratio_median": statistics.median(ratios),
            "time_ratio_interval_95": interval(ratios),
            "own_microseconds_per_step": own_us,
            "speedup": [1 / ratio for ratio in ratios],
        }

    def ready(self, folder: Path, *, own: bool) -> Runner:
        """A Runner before its first step."""
        out = folder / ("ours" if own else "reference")
        config = SegmentConfig(
            checkpoint=(NET,), data=folder / "data", out=out, head="fcn", channels=64, output_stride=32, crop=self.crop,
            batch_size=self.batch, steps=10_000, save_every=10_000, log_every=50, workers=0, rotate=0, blur=0,
        )  # fmt: skip
        run = Run.start()
        backbone = initial_backbone(NET, None, seed=0)
        plan = build_plan(config, run, backbone)
        out.mkdir()
        torch.save(plan.bridge.to_framework(backbone)[0], initial_file(out))
        settings = plan.resolved.to_dict()
        settings["train_cfg"]["type"] = "ByHand"
        if not own:
            settings["model"]["backbone"] = {
                "type": "ResNet",
                "depth": 18,
                "init_cfg": settings["model"]["backbone"]["init_cfg"],
            }
            settings["custom_hooks"] = []
            loader = settings["train_dataloader"]
            dataset = loader["dataset"]["dataset"]
            resize = {
                "type": "RandomResize",
                "scale": (self.crop, self.crop),
                "ratio_range": config.scale,
                "keep_ratio": True,
            }
            theirs = {"LoadPicture": {"type": "LoadImageFromFile"}, "ScaleBy": resize}
            pipeline = [theirs.get(view["type"], view) for view in dataset["pipeline"]]
            loader |= {"sampler": {"type": "InfiniteSampler"}, "dataset": {**dataset, "pipeline": pipeline}}
        runner = build_runner(Config(settings), run, resume=False)
        runner.train()
        return runner

    def own_microseconds(self, runner: Runner) -> float:
        """What our hooks and seeds take in a step, alone."""
        hooks = [hook for hook in runner.hooks if type(hook).__module__.startswith("stillroom")]
        dataset, times = runner.train_dataloader.dataset, []
        outputs = {"loss": torch.zeros(())}
        for step in range(200):
            began = time.perf_counter()
            for hook in hooks:
                hook.before_train_iter(runner, step)
                hook.after_train_iter(runner, step, None, outputs)
            for place in range(self.batch):
                dataset.seed_for(place * len(dataset))
            times.append(1e6 * (time.perf_counter() - began))
        return statistics.median(times)


def interval(values: list[float], share: float = 0.95, draws: int = 4000) -> tuple[float, float]:
    """Of the median, by the bootstrap (Efron 1979): percentiles of medians of resamples."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (draws, len(values))), axis=1)
    low, high = np.quantile(medians, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def draw(root: Path, side: int, num_images: int = 16) -> None:
    """Noise with masks of four classes."""
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
