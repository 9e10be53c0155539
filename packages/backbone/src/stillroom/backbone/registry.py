"""Backbones by the name of a net: `torchvision/*`, `timm/*`, `cifar/*`, `simclr/*`, `byol/*`."""

import copy
import difflib
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from stillroom.backbone import families  # its modules, and with them the libraries, are imported when they are used
from stillroom.backbone.errors import raised_by_us
from stillroom.backbone.features import Backbone, OpenedNet
from stillroom.backbone.names import LIBRARIES, RANDOM, unknown_backbone
from stillroom.backbone.spec import BackboneSpec, FeaturePoint, InputSpec, Licence


def list_backbones(pattern: str = "*") -> list[str]:
    """The names that `build_backbone` knows, filtered by a shell pattern such as `timm/vit_*`."""
    names = [name for library in LIBRARIES for name in getattr(families, library).list_names()]
    return [name for name in names if fnmatch(name, pattern)]


def build_backbone(
    name: str,
    *,
    pretrained: bool = False,
    arguments: dict[str, Any] | None = None,
    feature: FeaturePoint | None = None,
) -> Backbone:
    """Build a net by its library name, with random or with its published weights.

    Args:
        name: `torchvision/resnet18`, `timm/mobilenetv2_100`, `cifar/resnet20`, ...
        pretrained: load the weights that the library publishes (downloaded once, then from its cache).
        arguments: passed to the library's constructor, for instance `{"pad_type": "same"}`.
        feature: where the pooled feature is read; None means after the last activation.

    Raises:
        ValueError: unknown name (the closest ones are named), unsupported net, arguments that its constructor does not
            name or refuses, no published weights, or weights that cannot be downloaded (the folders where the file is
            searched are named).
    """
    opened, _, input_spec, licence = open_net(name, pretrained=pretrained, arguments=arguments or {})
    spec = BackboneSpec(
        name=name,
        arguments=arguments or {},
        dim=opened.dim,
        levels=opened.levels,
        input=input_spec,
        licence=licence,
    )
    return Backbone(opened, spec).at(feature)


def open_net(
    name: str, *, pretrained: bool, arguments: dict[str, Any]
) -> tuple[OpenedNet, nn.Module | None, InputSpec, Licence]:
    """Build and open a net: the opened net, its classifier if it has one, the input and licence its library states."""
    library, _, short = name.partition("/")
    known = name.split(".")[0] if library == "timm" else name  # timm's tags follow a dot
    if library not in LIBRARIES or known not in getattr(families, library).list_names():
        closest = difflib.get_close_matches(name.removeprefix(RANDOM), list_backbones(), n=3, cutoff=0.5)
        raise unknown_backbone(name, closest)
    family = getattr(families, library)
    # A manifest may be anybody's; some classes pass over what they do not know, and timm would load a `checkpoint_path`
    allowed = family.argument_names(short)
    if unknown := [key for key in arguments if key not in allowed]:
        names = f"those it takes are {', '.join(sorted(allowed))}" if allowed else "it takes none"
        raise ValueError(f"{name} has no constructor argument {unknown[0]!r}: {names}")
    try:
        input_spec, licence = family.published(short, arguments)
        opened, classifier = family.build(short, arguments, pretrained)
    except OSError as error:  # URLError, and the hub's errors, are subclasses
        if not pretrained:
            raise
        import huggingface_hub.constants  # noqa: PLC0415  # timm has imported it, nothing else needs it

        raise ValueError(
            f"the pretrained weights of {name} cannot be downloaded ({error.__class__.__name__}): they are searched "
            f"in {torch.hub.get_dir()}/checkpoints (torchvision) and {huggingface_hub.constants.HF_HUB_CACHE} (timm); "
            f"put the file there, turn one you have into a checkpoint with `stillroom-checkpoint import`, "
            f"or pass {RANDOM}{name}"
        ) from error
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # the library's own, about an argument
        if not arguments or raised_by_us(error):
            raise
        raise ValueError(f"{name} cannot be built with the arguments {arguments}: {error}") from error
    return opened, classifier, input_spec, licence if pretrained else Licence()


def classifier_prefix(name: str) -> str:
    """The prefix of the classifier's keys in the net's library, `fc.` or `head.fc.` for instance."""
    library, _, short = name.partition("/")
    if library == "timm":
        import timm  # noqa: PLC0415  # takes seconds, and only timm's nets need it

        return f"{timm.get_pretrained_cfg(short).classifier}."
    if short.startswith("convnext"):
        return "classifier.2."
    return "fc." if short.startswith(("resn", "wide_resnet", "regnet")) else "classifier."


def replace_input(backbone: Backbone, **changes: Any) -> Backbone:
    """Return the net (shared, not copied) with another input: `replace_input(backbone, size=128)`; None: no change."""
    changes = {key: value for key, value in changes.items() if value is not None}
    twin = copy.copy(backbone)
    twin.spec = replace(backbone.spec, input=replace(backbone.spec.input, **changes))
    return twin
