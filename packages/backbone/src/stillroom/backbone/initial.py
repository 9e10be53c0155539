"""Backbones by checkpoint or name: `load_backbone`, and the initial weights of a run."""

import copy

import torch

from stillroom.backbone.checkpoint import load_checkpoint
from stillroom.backbone.errors import keeps_traceback
from stillroom.backbone.features import Backbone
from stillroom.backbone.names import KEYWORDS, RANDOM, is_checkpoint, refuse_missing_checkpoint
from stillroom.backbone.registry import build_backbone, replace_input
from stillroom.backbone.seeds import seed_everything
from stillroom.backbone.spec import FeaturePoint


def load_backbone(name: str, feature: FeaturePoint | None = None) -> Backbone:
    """Load the backbone a person names: a checkpoint directory, a net with its published weights, or `random:NAME`.

    Errors are those of `build_backbone` and `load_checkpoint`.
    """
    refuse_missing_checkpoint(name)
    if name.startswith(RANDOM):
        return build_backbone(name.removeprefix(RANDOM), feature=feature)
    if is_checkpoint(name):
        return load_checkpoint(name)[0].at(feature)
    return build_backbone(name, pretrained=True, feature=feature)


def initial_backbone(name: str, like: str | None, seed: int) -> Backbone:
    """Load the initial weights of a run; `random` and `pretrained` take the net and the input of `like`.

    Published weights keep their own mean and std, and take the size and crop of `like`.

    Args:
        name: checkpoint directory, a net with its published weights, random:NAME, random or pretrained.
        like: the checkpoint or net that the last two copy.
        seed: of random weights.

    Raises:
        ValueError: see `load_backbone`; `random` or `pretrained` without `like`.
    """
    seed_everything(seed)
    if name not in KEYWORDS:
        return load_backbone(name)
    if like is None:
        raise ValueError(f"--checkpoint {name} names no net: pass {RANDOM}NAME, or the net with --like")
    source = load_backbone(like).spec
    seed_everything(seed)  # building `like` has drawn random numbers
    built = build_backbone(source.name, pretrained=name == "pretrained", arguments=source.arguments)
    if name == "random":
        built = replace_input(built, **{key: getattr(source.input, key) for key in vars(source.input)})
    return replace_input(built, size=source.input.size, crop_fraction=source.input.crop_fraction)


@torch.no_grad()
def refuse_size(backbone: Backbone, height: int, width: int, advice: str) -> None:
    """Refuse, by a forward pass, a net that does not take images of this size: ViTs take multiples of their patch.

    Args:
        backbone: on the CPU.
        height, width: pixels.
        advice: what to do.

    Raises:
        ValueError: with the net's own error, the advice, and the nearest sizes that work.
    """
    was_training = backbone.training
    try:
        backbone.eval()(torch.zeros(1, 3, height, width))
    except (AssertionError, RuntimeError) as error:  # the libraries' own, about the size
        if keeps_traceback(error):
            raise
        working = nearest_sizes(backbone, height) if height == width else []
        nearest = f"; the nearest sizes that work are {' and '.join(map(str, working))} px" if working else ""
        raise ValueError(
            f"{backbone.spec.name} takes no images of {width} x {height} px ({error}): {advice}{nearest}"
        ) from error
    finally:
        backbone.train(was_training)


@torch.no_grad()
def nearest_sizes(backbone: Backbone, size: int) -> list[int]:
    """The next smaller and the next larger image side that a net takes, pixels, found by passes on shapes alone."""
    if backbone.spec.name.startswith("module/"):
        return []  # a user's own code need not run without values
    twin = copy.deepcopy(backbone).to("meta")

    def takes(side: int) -> bool:
        try:
            twin(torch.zeros(1, 3, side, side, device="meta"))
        except (AssertionError, RuntimeError):
            return False
        return True

    below, above = range(size - 1, 0, -1), range(size + 1, size + 513)
    return [side for sides in (below, above) if (side := next(filter(takes, sides), 0))]
