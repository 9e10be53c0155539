"""From a name to a backbone: `torchvision/*`, `timm/*`, `cifar/*`, or the directory of a checkpoint."""

import copy
import difflib
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import torch
from torch import nn

from stillroom.backbone.families import cifar, simclr
from stillroom.backbone.families import timm as timm_nets
from stillroom.backbone.families import torchvision as torchvision_nets
from stillroom.backbone.features import Anatomy, Backbone
from stillroom.backbone.manifest import read_manifest
from stillroom.backbone.spec import BackboneSpec, FeaturePoint, InputSpec, Licence

RANDOM = "random:"


def list_backbones(pattern: str = "*") -> list[str]:
    """The names that `build_backbone` knows, filtered by a shell pattern such as `timm/vit_*`."""
    names = [*cifar.list_names(), *simclr.list_names(), *torchvision_nets.list_names(), *timm_nets.list_names()]
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
        ValueError: unknown name (the closest ones are named), unsupported net, no published weights, or weights that
            cannot be downloaded (where the file is looked for is named).
    """
    anatomy, _, input_spec, licence = open_net(name, pretrained=pretrained, arguments=arguments or {})
    spec = BackboneSpec(
        name=name,
        arguments=arguments or {},
        dim=anatomy.dim,
        levels=anatomy.levels,
        input=input_spec,
        licence=licence,
    )
    return Backbone(anatomy, spec).at(feature)


def is_checkpoint(name: str) -> bool:
    """Whether `name` is a checkpoint directory rather than the name of a net."""
    return (Path(name) / "manifest.json").exists()


def checkpoint_method(name: str) -> str:
    """How the weights behind `name` came to be, for a results file: a checkpoint's method, `random` or `pretrained`."""
    if is_checkpoint(name):
        return read_manifest(Path(name) / "manifest.json").method
    return "random" if name == "random" or name.startswith(RANDOM) else "pretrained"


def load_backbone(initialisation: str, feature: FeaturePoint | None = None) -> Backbone:
    """The backbone a person names: a checkpoint directory, a name with its pretrained weights, or `random:NAME`.

    Raises:
        ValueError: as `build_backbone`.
        CheckpointError: as `load_checkpoint`.
    """
    from stillroom.backbone.checkpoint import load_checkpoint  # noqa: PLC0415  # it rebuilds backbones by name

    if initialisation.startswith(RANDOM):
        return build_backbone(initialisation.removeprefix(RANDOM), feature=feature)
    if is_checkpoint(initialisation):
        return load_checkpoint(initialisation)[0].at(feature)
    return build_backbone(initialisation, pretrained=True, feature=feature)


def open_net(
    name: str, *, pretrained: bool, arguments: dict[str, Any]
) -> tuple[Anatomy, nn.Module | None, InputSpec, Licence]:
    """The opened net, its classifier where it has one, and the input and licence its library states."""
    library, _, short = name.partition("/")
    if library == "cifar" and name in cifar.list_names():
        if pretrained:
            raise ValueError(f"{name} has no published weights: say {RANDOM}{name} or give a checkpoint directory")
        return cifar.build(int(short.removeprefix("resnet"))), None, cifar.INPUT, Licence()
    if library == "simclr" and name in simclr.list_names():
        if pretrained:
            raise ValueError(f"{name} is published as a file only: import it, or say {RANDOM}{name}")
        if arguments:
            raise ValueError(f"{name} takes no constructor arguments, {', '.join(arguments)} came")
        anatomy, classifier = simclr.build(short)
        return anatomy, classifier, simclr.INPUT, Licence()
    if library == "torchvision" and name in torchvision_nets.list_names():
        return _open(torchvision_nets.build, torchvision_nets.published, name, short, pretrained, arguments)
    if library == "timm" and f"timm/{short.split('.')[0]}" in timm_nets.list_names():
        return _open(timm_nets.build, timm_nets.published, name, short, pretrained, arguments)
    raise ValueError(_unknown(name))


def _open(
    build: Callable[..., tuple[Anatomy, nn.Module | None]],
    published: Callable[[str], tuple[InputSpec, Licence]],
    name: str,
    short: str,
    pretrained: bool,
    arguments: dict[str, Any],
) -> tuple[Anatomy, nn.Module | None, InputSpec, Licence]:
    input_spec, licence = published(short)
    try:
        anatomy, classifier = build(short, arguments, pretrained)
    except OSError as error:  # URLError, and the hub's errors, are all of them
        raise ValueError(
            f"the pretrained weights of {name} cannot be downloaded ({error.__class__.__name__}): they are looked for "
            f"in {torch.hub.get_dir()}/checkpoints (torchvision) and {huggingface_hub.constants.HF_HUB_CACHE} (timm); "
            f"put the file there, turn one you have into a checkpoint with `stillroom-checkpoint import`, "
            f"or say {RANDOM}{name}"
        ) from error
    return anatomy, classifier, input_spec, licence if pretrained else Licence()


def _unknown(name: str) -> str:
    known = list_backbones()
    close = difflib.get_close_matches(name.removeprefix(RANDOM), known, n=3, cutoff=0.5)
    hint = f"the closest names are {', '.join(close)}" if close else "names look like torchvision/resnet18"
    return (
        f"there is no backbone named {name!r}, nor a checkpoint directory: {hint}; "
        f"a net of your own is wrapped with Backbone.from_module"
    )


def replace_input(backbone: Backbone, **changes: Any) -> Backbone:
    """The same net (shared, not copied) fed differently: `replace_input(backbone, size=128)`; None changes nothing."""
    changes = {key: value for key, value in changes.items() if value is not None}
    twin = copy.copy(backbone)
    twin.spec = replace(backbone.spec, input=replace(backbone.spec.input, **changes))
    return twin
