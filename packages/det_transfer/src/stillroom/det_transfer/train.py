"""The way of a run: images, first weights, the backend's detector and loop, what is found, what leaves."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillroom.backbone import Backbone, Run, load_checkpoint, save_checkpoint
from stillroom.backbone.configs import config_from_json, config_to_json
from stillroom.backbone.files import write_file
from stillroom.backbone.first import first_backbone, trained_method
from stillroom.backbone.run import CONFIG, DeviceName, read_config
from stillroom.det_transfer.backend import Backend, find_backend
from stillroom.det_transfer.config import DetectConfig, check
from stillroom.det_transfer.data import DetectionData
from stillroom.det_transfer.record import INITIAL, PACKAGE, finish

FINGERPRINTS = "fingerprints.json"
"""Of the images and boxes that a run began with."""


def train_one(config: DetectConfig, run: Run) -> None:
    """Train and measure a detector.

    Args:
        config: of a single run: one checkpoint, one seed.
        run: this process.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    backend = find_backend(config.backend)
    check(config, run.world_size, run.device.type == "cpu")
    data, backbone = backend.read(config), first_backbone(config.name, config.like, config.seed)
    if run.is_main:
        write_file(config.out / CONFIG, config_to_json(config))
        write_file(config.out / FINGERPRINTS, json.dumps(fingerprints(data)))
        save_checkpoint(config.out / INITIAL, backbone, method=trained_method(config.name), package=PACKAGE)
    run.wait()
    train(config, run, backend, data, backbone, go_on=False)


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
    config = config_from_json(read_config(path), DetectConfig)
    changes: dict[str, Any] = {"device": device, "workers": workers, "log_every": log_every, "out": path}
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    backend = find_backend(config.backend)
    here = Run.start(config.device) if run is None else run
    check(config, here.world_size, here.device.type == "cpu")
    if not (path / INITIAL).exists():
        raise ValueError(f"{path} was stopped before its first weights were written: remove it and start it anew")
    data = backend.read(config)
    if json.loads((path / FINGERPRINTS).read_text(encoding="utf-8")) != fingerprints(data):
        raise ValueError(f"the images or boxes of {path} changed since it began: it cannot be resumed")
    backbone, _ = load_checkpoint(path / INITIAL)
    train(config, here, backend, data, backbone, go_on=True)
    if run is None:
        here.close()


def train(
    config: DetectConfig, run: Run, backend: Backend, data: DetectionData, backbone: Backbone, go_on: bool
) -> None:
    """Train, find, bring the backbone back."""
    trained = backend.train(config, run, data, backbone, go_on)
    found = trained.find(data.val)
    if run.is_main:
        returned = trained.bridge.from_framework(trained.model.state_dict(), backbone)
        finish(config, data, returned, found, trained.bridge.count(trained.model), trained.seconds)
    run.wait()


def fingerprints(data: DetectionData) -> dict[str, str]:
    """Of the images and boxes of a run."""
    return {"train": data.train.record.fingerprint, "test": data.val.record.fingerprint}
