"""The first weights of a run, as its `--checkpoint` names them."""

from stillroom.backbone.features import Backbone
from stillroom.backbone.registry import RANDOM, build_backbone, load_backbone, replace_input
from stillroom.backbone.run import seed_everything

BARE = ("random", "pretrained")
"""First weights that say nothing of the net: it is another checkpoint's."""


def first_backbone(name: str, like: str | None, seed: int) -> Backbone:
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


def other_than_bare(names: tuple[str, ...]) -> str | None:
    """Whose net `random` and `pretrained` take where nobody says it: the first one that names a net."""
    return next((name for name in names if name not in BARE), None)


def trained_method(name: str) -> str:
    """How weights that were trained with labels from `name` came to be, for their manifest."""
    return "supervised" if name == "random" or name.startswith(RANDOM) else "finetune"
