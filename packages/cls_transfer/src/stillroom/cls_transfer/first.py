"""The first weights of a run."""

from stillroom.backbone import Backbone, build_backbone, load_backbone, replace_input
from stillroom.backbone.registry import RANDOM
from stillroom.backbone.run import seed_everything
from stillroom.cls_transfer.config import ClassifyConfig
from stillroom.cls_transfer.model import Classifier, build_layers

BARE = ("random", "pretrained")
"""First weights that say nothing of the net: it is another checkpoint's."""


def build_model(config: ClassifyConfig, num_classes: int) -> Classifier:
    """The backbone with its first weights and a new classifier; the seed decides what is random.

    Raises:
        ValueError: see `load_backbone` and `Classifier`; `random` alone.
    """
    seed_everything(config.seed)
    backbone = replace_input(build_first(config), size=config.size, crop_fraction=config.crop_fraction)
    if not config.normalise:
        backbone = replace_input(backbone, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Classifier(backbone, build_layers(backbone.spec.dim, num_classes, config.hidden), freeze=config.freeze)


def build_first(config: ClassifyConfig) -> Backbone:
    """The backbone that `--checkpoint` names; `random` and `pretrained` have the net of `--like`, fed in the same way.

    Published weights keep their own mean and std, and take the other's size.
    """
    (name,) = config.checkpoint
    if name not in BARE:
        return load_backbone(name)
    if config.like is None:
        raise ValueError(f"--checkpoint {name} alone names no net: say {RANDOM}NAME, or whose by --like")
    other = load_backbone(config.like).spec
    seed_everything(config.seed)  # reading the other one has drawn
    built = build_backbone(other.name, pretrained=name == "pretrained", arguments=other.arguments)
    if name == "random":
        built = replace_input(built, **{key: getattr(other.input, key) for key in vars(other.input)})
    return replace_input(built, size=other.input.size, crop_fraction=other.input.crop_fraction)


def method_of(config: ClassifyConfig) -> str:
    """How the weights that leave came to be, for their manifest."""
    (name,) = config.checkpoint
    return "supervised" if name == "random" or name.startswith(RANDOM) else "finetune"
