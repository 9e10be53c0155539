"""The first weights of a classifier."""

from stillroom.backbone import replace_input
from stillroom.backbone.initial import initial_backbone
from stillroom.cls_transfer.config import ClassifyConfig
from stillroom.cls_transfer.model import Classifier, build_layers


def build_model(config: ClassifyConfig, num_classes: int) -> Classifier:
    """The backbone with its first weights and a new classifier; the seed decides what is random.

    Raises:
        ValueError: see `initial_backbone` and `Classifier`.
    """
    (name,) = config.checkpoint
    backbone = initial_backbone(name, config.like, config.seed)
    backbone = replace_input(backbone, size=config.size, crop_fraction=config.crop_fraction)
    if not config.normalise:
        backbone = replace_input(backbone, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Classifier(backbone, build_layers(backbone.spec.dim, num_classes, config.hidden), freeze=config.freeze)
