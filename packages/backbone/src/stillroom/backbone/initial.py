"""The first weights of a run, as its `--checkpoint` names them."""

from stillroom.backbone.features import Backbone
from stillroom.backbone.names import BARE, RANDOM
from stillroom.backbone.registry import build_backbone, load_backbone, replace_input
from stillroom.backbone.run import seed_everything


def initial_backbone(name: str, like: str | None, seed: int) -> Backbone:
    """The backbone that a person names; `random` and `pretrained` have the net of `like`, fed in the same way.

    Published weights keep their own mean and std, and take the other's size.

    Args:
        name: checkpoint directory, a name with its pretrained weights, random:NAME, random or pretrained.
        like: whose net the last two have.
        seed: of random weights.

    Raises:
        ValueError: see `load_backbone`; `random` or `pretrained` alone.
    """
    seed_everything(seed)
    if name not in BARE:
        return load_backbone(name)
    if like is None:
        raise ValueError(f"--checkpoint {name} alone names no net: say {RANDOM}NAME, or whose by --like")
    other = load_backbone(like).spec
    seed_everything(seed)  # reading the other one has drawn
    built = build_backbone(other.name, pretrained=name == "pretrained", arguments=other.arguments)
    if name == "random":
        built = replace_input(built, **{key: getattr(other.input, key) for key in vars(other.input)})
    return replace_input(built, size=other.input.size, crop_fraction=other.input.crop_fraction)
