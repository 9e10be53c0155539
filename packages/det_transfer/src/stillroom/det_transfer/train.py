"""The way of a run: images, first weights, the backend's detector and loop, what is found, what leaves."""

from dataclasses import dataclass
from pathlib import Path

import torch

from stillroom.backbone import Backbone, Run, load_checkpoint
from stillroom.backbone.finetune import lifecycle
from stillroom.backbone.initial import initial_backbone
from stillroom.backbone.loading import TrainingBatches
from stillroom.det_transfer.backend import find_backend
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import DetectionData
from stillroom.det_transfer.record import finish


@dataclass(frozen=True, kw_only=True)
class Prepared(lifecycle.Prepared):
    """What a run begins with: its images, with boxes."""

    data: DetectionData


def prepare(config: DetectConfig, run: Run, saved: Path | None) -> Prepared:
    """Read the images and the initial weights of a single run; nothing is written.

    Args:
        config: of a single run: one checkpoint, one seed.
        run: this process.
        saved: the initial weights that a resumed run kept; None: those of `--checkpoint`.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    backend = find_backend(config.backend)
    data = backend.read(config)
    if saved is not None:
        backbone, _ = load_checkpoint(saved)
        return Prepared(backbone=backbone, records=data.records, data=data)
    backbone = initial_backbone(config.name, config.like, config.seed)
    if config.framework_config is None:
        TrainingBatches(len(data.train), config.batch_size, 1, config.seed, run)  # does the batch fit the data?
        try_sizes(backbone)
    backend.look_ahead(config, run, data, backbone)
    return Prepared(backbone=backbone, records=data.records, data=data)


@torch.no_grad()
def try_sizes(backbone: Backbone) -> None:
    """Look before the run whether a net takes images of any size: some take their own alone.

    Raises:
        ValueError: with what the net says.
    """
    strides = [level.stride for level in backbone.spec.levels]
    if odd := [stride for stride in strides if stride & (stride - 1)]:
        raise ValueError(f"{backbone.spec.name} has maps of stride {odd[0]}: a detector wants powers of two")
    side = max([32, *strides])
    try:
        backbone.eval()(torch.zeros(1, 3, 2 * side, 3 * side))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"{backbone.spec.name} takes no images of {3 * side} x {2 * side} px ({error}): a detector's have any size"
        ) from error


def train(config: DetectConfig, run: Run, prepared: Prepared, resume: bool) -> None:
    """Train, predict, bring the backbone back, and write what a run leaves."""
    data, backbone = prepared.data, prepared.backbone
    trained = find_backend(config.backend).train(config, run, data, backbone, resume)
    found = trained.find(data.val)
    if run.is_main:
        returned = trained.bridge.from_framework(trained.model.state_dict(), backbone)
        finish(config, data, returned, found, trained.bridge.count(trained.model), trained.seconds)
    run.wait()
