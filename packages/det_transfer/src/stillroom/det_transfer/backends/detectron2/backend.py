"""Detectron2 as a backend; see `Backend`."""

import warnings

from stillroom.backbone import Backbone, Run
from stillroom.backbone.errors import keeps_traceback
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import DetectionData, read_data

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pkg_resources and TorchScript warn on import: nothing that a user can change
    from detectron2.config import instantiate

    from stillroom.det_transfer.backends.detectron2.predict import load_predictor
    from stillroom.det_transfer.backends.detectron2.recipe import build_config
    from stillroom.det_transfer.backends.detectron2.train import train
    from stillroom.det_transfer.backends.detectron2.user_config import (
        adopt_bridge,
        check_classes,
        load_user_config,
        read_user_data,
    )

__all__ = ["load_predictor", "preflight", "read", "train"]


def read(config: DetectConfig) -> DetectionData:
    """Read the images of a run, those of a user's own LazyConfig included; see `read_data` and `read_user_data`."""
    return read_data(config) if config.framework_config is None else read_user_data(config.framework_config)


def preflight(config: DetectConfig, run: Run, data: DetectionData, backbone: Backbone) -> None:
    """Describe the detector, or build and discard a user's own; see `build_model` and `adopt_bridge`.

    Raises:
        ValueError: a backbone that does not fit, a user's model that cannot be built or predicts other classes.
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
    check_classes(net, data.classes)
