"""Toy runs of every trainer, for tools/chaos.py: they log each step, and resume where they were stopped."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

import stillroom.cls_transfer.presets as cls_presets
import stillroom.det_transfer.presets as det_presets
import stillroom.distill.presets as distill_presets
from make_toy_data import Settings, make_toy_data
from stillroom import cls_transfer, det_transfer, distill
from stillroom.distill.config import Cache, Monitor
from stillroom.runs.results import read_results
from stillroom.runs.run import read_metrics

FREQUENT: dict[str, Any] = {
    "log_every": 1,
    "save_every": 2,
    "save_minutes": 0.005,
    "if_exists": "resume",
    "device": "cpu",
}
"""A state every second step and every 0.3 s."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A toy run.

    Args:
        config: folder of the toy data, run directory -> its config.
        run: starts, resumes or keeps it.
        checkpoint: its trained weights, in the run directory.
    """

    config: Callable[[Path, Path], Any]
    run: Callable[[Any], object]
    checkpoint: str = "checkpoint"

    def outcome(self, out: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """What must be equal to the bit: the weights, and the metrics and logged losses."""
        rows = [(row["step"], row.get("loss")) for row in read_metrics(out)]
        return load_file(out / self.checkpoint / "model.safetensors"), {
            "metrics": read_results(out).metrics,
            "log": rows,
        }


def distill_config(data: Path, out: Path) -> Any:
    """Four epochs with cached teacher outputs, a monitor, a running average and kept epochs."""
    config = distill_presets.smoke(data=data / "unlabelled", out=out)
    monitor = Monitor(held_out=0.2, every=1)
    changes = {"epochs": 4, "ema": 0.5, "keep_every": 2, "cache": Cache(views=2), "monitor": monitor, "workers": 1}
    student, teacher = replace(config.student, size=(16,)), replace(config.teacher, size=(16,))
    return replace(config, **changes, **FREQUENT, student=student, teacher=teacher)


def cls_config(data: Path, out: Path) -> Any:
    """Three epochs with mixup, an average of the weights, and selection by held-out images."""
    config = cls_presets.smoke(out=out)
    folders = {"train": data / "heldout-shapes" / "train", "test": data / "heldout-shapes" / "val"}
    return replace(config, **folders, epochs=3, mixup=0.2, ema=0.5, held_out=0.2, workers=1, size=24, **FREQUENT)


def det_config(data: Path, out: Path) -> Any:
    """Eight steps of Faster R-CNN by torchvision."""
    config = det_presets.smoke(out=out)
    sizes = {"train_sizes": (48,), "test_size": 48, "max_size": 64, "fpn_dim": 16, "box_dim": 16, "rois": 8}
    changes = {"checkpoint": ("random:cifar/resnet20",), "data": data / "scenes", "steps": 8, "batch_size": 2}
    return replace(config, **changes, **sizes, workers=1, **FREQUENT)


def seg_config(data: Path, out: Path) -> Any:
    """Eight steps of PSPNet by MMEngine."""
    from stillroom.seg_transfer.presets import smoke  # noqa: PLC0415

    config = smoke(out=out)
    changes = {"checkpoint": ("random:cifar/resnet20",), "data": data / "scenes", "steps": 8, "batch_size": 2}
    return replace(config, **changes, channels=8, crop=32, workers=1, **FREQUENT)


def run_seg(config: Any) -> object:
    """Train a segmentation model; MMSegmentation, which takes seconds to import, is imported here."""
    from stillroom import seg_transfer  # noqa: PLC0415

    return seg_transfer.finetune(config)


TRAINERS = {
    "distill": Trainer(config=distill_config, run=distill.distill, checkpoint="student"),
    "cls": Trainer(config=cls_config, run=cls_transfer.finetune),
    "seg": Trainer(config=seg_config, run=run_seg),
    "det": Trainer(config=det_config, run=det_transfer.finetune),
}


def make_data(folder: Path) -> Path:
    """Draw the toy images of all runs."""
    counts = {"num_unlabelled": 160, "num_train": 32, "num_heldout": 96, "num_val": 16}
    scenes = {"num_scenes": 16, "num_scenes_val": 8, "scene_size": 48}
    make_toy_data(Settings(out=folder, size=24, num_workers=1, **counts, **scenes))
    return folder
