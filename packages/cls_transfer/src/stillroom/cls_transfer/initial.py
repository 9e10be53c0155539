"""The initial weights of a classifier."""

from pathlib import Path

import torch
from torch import nn

from stillroom.backbone import Backbone, load_checkpoint, load_heads, replace_input
from stillroom.backbone.errors import keeps_traceback
from stillroom.backbone.heads import build_head
from stillroom.backbone.initial import initial_backbone
from stillroom.cls_transfer.config import ClassifyConfig
from stillroom.cls_transfer.model import Classifier, build_layers

HEAD = "classifier"
"""Name of the classifier among a checkpoint's heads."""


def build_model(config: ClassifyConfig, num_classes: int) -> Classifier:
    """Build the backbone that `--checkpoint` names, with a new classifier; the seed decides what is random.

    Raises:
        ValueError: see `initial_backbone`, `check_size` and `Classifier`.
    """
    backbone = initial_backbone(config.name, config.like, config.seed)
    backbone = replace_input(backbone, size=config.size, crop_fraction=config.crop_fraction)
    if not config.normalise:
        backbone = replace_input(backbone, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    check_size(backbone)
    return Classifier(backbone, build_layers(backbone.spec.dim, num_classes, config.hidden), freeze=config.freeze)


@torch.no_grad()
def check_size(backbone: Backbone) -> None:
    """Check, by a forward pass, that a net takes images of its input size; some take only the one they were trained on.

    Raises:
        ValueError: with the size and the net's own error.
    """
    side = backbone.spec.input.size
    try:
        backbone.eval()(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError) as error:  # the libraries' own, about the size
        if keeps_traceback(error):
            raise
        raise ValueError(
            f"{backbone.spec.name} takes no images of {side} x {side} px ({error}): pass another --size"
        ) from error


def load_model(saved: Path, config: ClassifyConfig) -> Classifier:
    """Load the initial weights, classifier included, that a run keeps in its directory.

    Raises:
        ValueError: `CheckpointError` if they cannot be read.
    """
    backbone, manifest = load_checkpoint(saved)
    head = build_head(manifest.heads[HEAD], load_heads(saved, HEAD))
    assert isinstance(head, nn.Sequential), "heads are rebuilt as nn.Sequential"
    return Classifier(backbone, head, freeze=config.freeze)
