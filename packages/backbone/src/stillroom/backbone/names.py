"""What a person calls weights: a checkpoint directory, a library's name, random:NAME, random or pretrained."""

from collections.abc import Sequence
from pathlib import Path

from stillroom.backbone.manifest import MANIFEST, read_manifest

RANDOM = "random:"

BARE = ("random", "pretrained")
"""First weights that say nothing of the net: it is another checkpoint's."""

LIBRARIES = ("cifar", "simclr", "timm", "torchvision")
"""What stands before the slash in the name of a net."""


def is_checkpoint(name: str) -> bool:
    """Whether `name` is a checkpoint directory rather than the name of a net."""
    return (Path(name) / MANIFEST).exists()


def checkpoint_method(name: str) -> str:
    """How the weights behind `name` came to be, for a results file: a checkpoint's method, `random` or `pretrained`."""
    if is_checkpoint(name):
        return read_manifest(Path(name) / MANIFEST).method
    return "random" if name == "random" or name.startswith(RANDOM) else "pretrained"


def refuse_missing_checkpoint(name: str) -> None:
    """Refuse the path of a checkpoint that is not there; what may be the name of a net passes.

    A path begins with a slash, a dot or a folder that exists, or has several slashes, and no library in front.

    Raises:
        ValueError: see `no_backbone`.
    """
    first, slash, rest = name.partition("/")
    is_path = slash and ("/" in rest or not first.strip(".~") or Path(first).is_dir())
    if is_path and first not in LIBRARIES and not is_checkpoint(name):
        raise no_backbone(name)


def no_backbone(name: str, closest: Sequence[str] = ()) -> ValueError:
    """What is said of a name that nobody knows; `closest` are the names most like it."""
    hint = f"the closest names are {', '.join(closest)}" if closest else "names look like torchvision/resnet18"
    return ValueError(
        f"there is no backbone named {name!r}, nor a checkpoint directory: {hint}; "
        f"a net of your own is wrapped with Backbone.from_module"
    )


def other_than_bare(names: tuple[str, ...]) -> str | None:
    """Whose net `random` and `pretrained` take where nobody says it: the first one that names a net."""
    return next((name for name in names if name not in BARE), None)


def trained_method(name: str) -> str:
    """How weights that were trained with labels from `name` came to be, for their manifest."""
    return "supervised" if name == "random" or name.startswith(RANDOM) else "finetune"
