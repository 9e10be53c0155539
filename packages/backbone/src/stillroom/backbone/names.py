"""Names of weights on the command line: a checkpoint directory, a library's net, random:NAME, random or pretrained."""

from collections.abc import Sequence
from pathlib import Path

from stillroom.backbone.manifest import MANIFEST, read_manifest, refuse_missing_epoch

RANDOM = "random:"

KEYWORDS = ("random", "pretrained")
"""Initial weights that name no net: it is taken from another checkpoint."""

LIBRARIES = ("byol", "cifar", "simclr", "timm", "torchvision")
"""The part of a net's name before the slash."""


def is_checkpoint(name: str) -> bool:
    """Whether `name` is a checkpoint directory rather than the name of a net."""
    return (Path(name) / MANIFEST).exists()


def is_random(name: str) -> bool:
    """Whether `name` requests random weights."""
    return name == "random" or name.startswith(RANDOM)


def checkpoint_method(name: str) -> str:
    """How the weights behind `name` were made, for a results file: a checkpoint's method, `random` or `pretrained`."""
    if is_checkpoint(name):
        return read_manifest(Path(name) / MANIFEST).method
    return "random" if is_random(name) else "pretrained"


def trained_method(name: str) -> str:
    """How weights trained with labels from the initial weights `name` were made, for their manifest."""
    return "supervised" if is_random(name) else "finetune"


def refuse_missing_checkpoint(name: str) -> None:
    """Raise ValueError for the path of a checkpoint that does not exist; a possible name of a net passes.

    A path begins with a slash, a dot or an existing folder, or has several slashes, and no library in front. For an
    epoch that a run did not keep, `RUN/student@7`, the error lists those that it kept.
    """
    refuse_missing_epoch(Path(name))
    first, slash, rest = name.partition("/")
    is_path = slash and ("/" in rest or not first.strip(".~") or Path(first).is_dir())
    if is_path and first not in LIBRARIES and not is_checkpoint(name):
        raise unknown_backbone(name)


def unknown_backbone(name: str, closest: Sequence[str] = ()) -> ValueError:
    """The error for an unknown name; `closest` are the most similar names."""
    hint = f"the closest names are {', '.join(closest)}" if closest else "names look like torchvision/resnet18"
    return ValueError(
        f"there is no backbone named {name!r}, nor a checkpoint directory: {hint}; "
        f"wrap a net of your own with Backbone.from_module"
    )
