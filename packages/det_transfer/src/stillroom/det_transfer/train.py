"""The main path of a run: images, initial weights, training by the backend, predictions, outputs."""

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
from stillroom.det_transfer.backends import find_backend
from stillroom.det_transfer.config import DetectConfig, check
from stillroom.det_transfer.data import DetectionData
from stillroom.det_transfer.record import INITIAL, PACKAGE, finish


def train_one(config: DetectConfig, run: Run) -> None:
    """Train and evaluate a detector.

    Args:
        config: of a single run: one checkpoint, one seed.
        run: this process.

    Raises:
        ValueError: invalid input.
    """
    data, backbone = prepare(config, run)
    records = data.records
    run.wait()  # every process has checked for config.json before the first one writes it
    if run.is_main:
        save_checkpoint(config.out / INITIAL, backbone, method=checkpoint_method(config.name), package=PACKAGE)
        keep_fingerprints(config.out, records)
        write_file(config.out / CONFIG, config_to_json(config))  # last: a run that has it can be resumed
    run.wait()
    train(config, run, data, backbone, resume=False)


def prepare(config: DetectConfig, run: Run) -> tuple[DetectionData, Backbone]:
    """Read and validate the images and initial weights of a single run; nothing is written.

    Raises:
        ValueError: invalid input.
    """
    check(config, run.world_size, run.device.type == "cpu")
    backend = find_backend(config.backend)
    data, backbone = backend.read(config), initial_backbone(config.name, config.like, config.seed)
    if config.framework_config is None:
        TrainingBatches(len(data.train), config.batch_size, 1, config.seed, run)  # does the batch fit the data?
        check_image_sizes(backbone)
    backend.preflight(config, run, data, backbone)
    return data, backbone


@torch.no_grad()
def check_image_sizes(backbone: Backbone) -> None:
    """Check that a net takes images of any size, by a forward pass; some take only the size they were trained on.

    Raises:
        ValueError: a stride that is not a power of two, or the net's own error.
    """
    strides = [level.stride for level in backbone.spec.levels]
    if odd := [stride for stride in strides if stride & (stride - 1)]:
        raise ValueError(f"{backbone.spec.name} has maps of stride {odd[0]}: a detector needs powers of two")
    side = max([32, *strides])
    try:
        backbone.eval()(torch.zeros(1, 3, 2 * side, 3 * side))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"{backbone.spec.name} refuses images of {3 * side} x {2 * side} px ({error}): a detector needs a net that "
            "takes any size"
        ) from error


def resume_one(
    path: Path,
    *,
    run: Run | None = None,
    device: DeviceName | None = None,
    workers: int | None = None,
    log_every: int | None = None,
) -> None:
    """Resume a run from its last state; on the CPU the final weights equal those of an uninterrupted run to the bit.

    Args:
        path: the run directory.
        run: this process; None: it is started and closed here.
        device, workers, log_every: replace the run's settings; None keeps them.

    Raises:
        ValueError: no run directory, or images or boxes that have changed since.
    """
    config = reread_config(path, DetectConfig, device=device, workers=workers, log_every=log_every)
    this_run = Run.start(config.device) if run is None else run
    check(config, this_run.world_size, this_run.device.type == "cpu")
    data = find_backend(config.backend).read(config)
    refuse_changed(path, data.records)
    backbone, _ = load_checkpoint(path / INITIAL)
    train(config, this_run, data, backbone, resume=True)
    if run is None:
        this_run.close()


def train(config: DetectConfig, run: Run, data: DetectionData, backbone: Backbone, resume: bool) -> None:
    """Train the detector, predict the validation images, take the backbone out of it, and write the outputs."""
    trained = find_backend(config.backend).train(config, run, data, backbone, resume)
    predictions = trained.predict(data.val)
    if run.is_main:
        returned = trained.bridge.from_framework(trained.model.state_dict(), backbone)
        finish(config, data, returned, predictions, trained.bridge.count(trained.model), trained.seconds)
    run.wait()
