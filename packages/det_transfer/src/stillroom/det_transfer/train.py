"""The way of a run: images, first weights, the backend's detector and loop, what is found, what leaves."""

from pathlib import Path

import torch

from stillroom.backbone import Backbone, Run, load_checkpoint, save_checkpoint
from stillroom.backbone.atomic import write_file
from stillroom.backbone.configs import config_to_json, reread_config
from stillroom.backbone.flags import DeviceName
from stillroom.backbone.initial import initial_backbone
from stillroom.backbone.loading import TrainingBatches
from stillroom.backbone.names import checkpoint_method
from stillroom.backbone.run_files import CONFIG
from stillroom.backbone.sweep import keep_fingerprints, refuse_changed
from stillroom.det_transfer.backend import find_backend
from stillroom.det_transfer.config import DetectConfig, check
from stillroom.det_transfer.data import DetectionData
from stillroom.det_transfer.record import INITIAL, PACKAGE, finish


def train_one(config: DetectConfig, run: Run) -> None:
    """Train and measure a detector.

    Args:
        config: of a single run: one checkpoint, one seed.
        run: this process.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    data, backbone = prepare(config, run)
    records = data.records
    run.wait()  # every process has looked for config.json before the first one writes it
    if run.is_main:
        save_checkpoint(config.out / INITIAL, backbone, method=checkpoint_method(config.name), package=PACKAGE)
        keep_fingerprints(config.out, records)
        write_file(config.out / CONFIG, config_to_json(config))  # last: a run that has it can go on
    run.wait()
    train(config, run, data, backbone, go_on=False)


def prepare(config: DetectConfig, run: Run) -> tuple[DetectionData, Backbone]:
    """The images and first weights of a single run; nothing is written.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    check(config, run.world_size, run.device.type == "cpu")
    backend = find_backend(config.backend)
    data, backbone = backend.read(config), initial_backbone(config.name, config.like, config.seed)
    if config.framework_config is None:
        TrainingBatches(len(data.train), config.batch_size, 1, config.seed, run)  # does the batch fit the data?
        try_sizes(backbone)
    backend.look_ahead(config, run, data, backbone)
    return data, backbone


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
        ValueError: no run directory, or images or boxes that changed since.
    """
    config = reread_config(path, DetectConfig, device=device, workers=workers, log_every=log_every)
    here = Run.start(config.device) if run is None else run
    check(config, here.world_size, here.device.type == "cpu")
    data = find_backend(config.backend).read(config)
    refuse_changed(path, data.records)
    backbone, _ = load_checkpoint(path / INITIAL)
    train(config, here, data, backbone, go_on=True)
    if run is None:
        here.close()


def train(config: DetectConfig, run: Run, data: DetectionData, backbone: Backbone, go_on: bool) -> None:
    """Train, find, bring the backbone back."""
    trained = find_backend(config.backend).train(config, run, data, backbone, go_on)
    found = trained.find(data.val)
    if run.is_main:
        returned = trained.bridge.from_framework(trained.model.state_dict(), backbone)
        finish(config, data, returned, found, trained.bridge.count(trained.model), trained.seconds)
    run.wait()
