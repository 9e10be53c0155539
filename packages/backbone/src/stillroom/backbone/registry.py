"""From a name to a backbone: `torchvision/*`, `timm/*`, `cifar/*`, or the directory of a checkpoint."""

import copy
import difflib
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from stillroom.backbone import families  # its modules, and with them the libraries, are imported when they are used
from stillroom.backbone.features import Anatomy, Backbone
from stillroom.backbone.names import RANDOM, is_checkpoint, no_backbone, refuse_missing_checkpoint
from stillroom.backbone.spec import BackboneSpec, FeaturePoint, InputSpec, Licence


def list_backbones(pattern: str = "*") -> list[str]:
    """The names that `build_backbone` knows, filtered by a shell pattern such as `timm/vit_*`."""
    modules = (families.cifar, families.simclr, families.torchvision, families.timm)
    names = [name for module in modules for name in module.list_names()]
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


def load_backbone(initialisation: str, feature: FeaturePoint | None = None) -> Backbone:
    """The backbone a person names: a checkpoint directory, a name with its pretrained weights, or `random:NAME`.

    Raises:
        ValueError: as `build_backbone`.
        CheckpointError: as `load_checkpoint`.
    """
    from stillroom.backbone.checkpoint import load_checkpoint  # noqa: PLC0415  # it rebuilds backbones by name

    refuse_missing_checkpoint(initialisation)
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
    if library == "cifar" and name in families.cifar.list_names():
        if pretrained:
            raise ValueError(f"{name} has no published weights: say {RANDOM}{name} or give a checkpoint directory")
        return families.cifar.build(int(short.removeprefix("resnet"))), None, families.cifar.INPUT, Licence()
    if library == "simclr" and name in families.simclr.list_names():
        if pretrained:
            raise ValueError(f"{name} is published as a file only: import it, or say {RANDOM}{name}")
        if arguments:
            raise ValueError(f"{name} takes no constructor arguments, {', '.join(arguments)} came")
        anatomy, classifier = families.simclr.build(short)
        return anatomy, classifier, families.simclr.INPUT, Licence()
    if library == "torchvision" and name in families.torchvision.list_names():
        return _open(families.torchvision.build, families.torchvision.published, name, short, pretrained, arguments)
    if library == "timm" and f"timm/{short.split('.')[0]}" in families.timm.list_names():
        return _open(families.timm.build, families.timm.published, name, short, pretrained, arguments)
    closest = difflib.get_close_matches(name.removeprefix(RANDOM), list_backbones(), n=3, cutoff=0.5)
    raise no_backbone(name, closest)


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
        import huggingface_hub.constants  # noqa: PLC0415  # timm has imported it, nothing else needs it

        raise ValueError(
            f"the pretrained weights of {name} cannot be downloaded ({error.__class__.__name__}): they are looked for "
            f"in {torch.hub.get_dir()}/checkpoints (torchvision) and {huggingface_hub.constants.HF_HUB_CACHE} (timm); "
            f"put the file there, turn one you have into a checkpoint with `stillroom-checkpoint import`, "
            f"or say {RANDOM}{name}"
        ) from error
    return anatomy, classifier, input_spec, licence if pretrained else Licence()


def replace_input(backbone: Backbone, **changes: Any) -> Backbone:
    """The same net (shared, not copied) fed differently: `replace_input(backbone, size=128)`; None changes nothing."""
    changes = {key: value for key, value in changes.items() if value is not None}
    twin = copy.copy(backbone)
    twin.spec = replace(backbone.spec, input=replace(backbone.spec.input, **changes))
    return twin
