"""The initial weights of a classifier."""

from pathlib import Path

from torch import nn

from stillroom.backbone import load_checkpoint, load_heads, replace_input
from stillroom.backbone.heads import build_head
from stillroom.backbone.initial import initial_backbone, refuse_size
from stillroom.cls_transfer.config import ClassifyConfig, fixed_input
from stillroom.cls_transfer.model import Classifier, build_layers

HEAD = "classifier"
"""Name of the classifier among a checkpoint's heads."""


def build_model(config: ClassifyConfig, num_classes: int) -> Classifier:
    """Build the backbone that `--checkpoint` names, with a new classifier; the seed decides what is random.

    Raises:
        ValueError: see `initial_backbone`, `refuse_size` and `Classifier`.
    """
    backbone = initial_backbone(config.name, config.like, config.seed)
    backbone = replace_input(backbone, size=config.size, crop_fraction=config.crop_fraction)
    backbone = replace_input(backbone, **fixed_input(config))
    refuse_size(backbone, backbone.spec.input.size, backbone.spec.input.size, "pass another --size")
    return Classifier(backbone, build_layers(backbone.spec.dim, num_classes, config.hidden), freeze=config.freeze)


def load_model(saved: Path, config: ClassifyConfig) -> Classifier:
    """Load the initial weights, classifier included, that a run keeps in its directory.

    Raises:
        ValueError: `CheckpointError` if they cannot be read.
    """
    backbone, manifest = load_checkpoint(saved)
    head = build_head(manifest.heads[HEAD], load_heads(saved, HEAD))
    assert isinstance(head, nn.Sequential), "heads are rebuilt as nn.Sequential"
    return Classifier(backbone, head, freeze=config.freeze)
