"""Detectron2 as a backend; see `Backend`."""

import sys
import warnings

from stillroom.backbone import Backbone
from stillroom.backbone.errors import keeps_traceback
from stillroom.det_transfer.backends.protocol import Predictor
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import DetectionData, read_data
from stillroom.runs import Run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pkg_resources and TorchScript warn on import: nothing that a user can change
    from detectron2.config import instantiate

    from stillroom.det_transfer.backends.detectron2.predict import build_predictor
    from stillroom.det_transfer.backends.detectron2.recipe import build_config
    from stillroom.det_transfer.backends.detectron2.saved import load_saved_config
    from stillroom.det_transfer.backends.detectron2.train import train
    from stillroom.det_transfer.backends.detectron2.user_config import (
        adopt_bridge,
        check_classes,
        check_features,
        describe_differences,
        load_user_config,
        read_user_data,
        try_image,
    )

__all__ = ["load_predictor", "preflight", "read", "train"]


def read(config: DetectConfig) -> DetectionData:
    """Read the images of a run, those of a user's own LazyConfig included; see `read_data` and `read_user_data`."""
    return read_data(config) if config.framework_config is None else read_user_data(config.framework_config)


def preflight(config: DetectConfig, run: Run, data: DetectionData, backbone: Backbone) -> None:
    """Describe the detector, or build, try and discard a user's own; see `build_model` and `adopt_bridge`.

    Raises:
        ValueError: a backbone that does not fit, a user's model that cannot be built, computes other features, fails on
            an image or predicts other classes.
    """
    if config.framework_config is None:
        build_config(config, run, backbone, len(data.classes))
        return
    cfg = load_user_config(config.framework_config)
    if cfg.train.amp.enabled and run.device.type == "cpu":
        raise ValueError("the config's train.amp.enabled needs a GPU: Detectron2's mixed precision refuses the CPU")
    try:
        net = instantiate(cfg.model)
    except Exception as error:  # a user's model may be of any class and raise anything
        if keeps_traceback(error):
            raise
        raise ValueError(f"the model of {config.framework_config} cannot be built: {error}") from error
    adopt_bridge(backbone.spec, net).load(net, backbone)
    check_features(net, backbone)
    check_classes(net, data.classes)
    try_image(cfg, net, data.val, config.framework_config)
    for note in (*data.notes, *describe_differences(cfg, net, config, backbone.spec)):
        print(f"note: {note}", file=sys.stderr)


def load_predictor(config: DetectConfig, backbone: Backbone, num_classes: int, run: Run) -> Predictor:
    """Load the detector of a finished run.

    Args:
        config: of the run; with a user's LazyConfig the one that the run saved is executed, see `refuse_untrusted`.
        backbone: its initial backbone.
        num_classes: without background.
        run: this process.
    """
    if config.framework_config is None:
        cfg, _ = build_config(config, run, backbone, num_classes)
    else:
        cfg = load_saved_config(config.out)
    return build_predictor(cfg, config.out, run)
