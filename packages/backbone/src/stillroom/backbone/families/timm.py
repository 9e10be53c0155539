"""Nets of timm, opened through its `forward_intermediates` and `forward_head(pre_logits=True)`."""

import inspect
import sys
from functools import partial
from typing import Any

import timm
from torch import Tensor, nn

from stillroom.backbone.features import OpenedNet
from stillroom.backbone.spec import PERMISSIVE_LICENCES, InputSpec, Level, Licence

# timm's modules whose nets are supported, and the class each must build.
FAMILIES = {
    "resnet": "ResNet",
    "regnet": "RegNet",
    "efficientnet": "EfficientNet",
    "mobilenetv3": "MobileNetV3",
    "convnext": "ConvNeXt",
    "vision_transformer": "VisionTransformer",
    "eva": "Eva",
    "swin_transformer": "SwinTransformer",
}
_NUM_VIT_LEVELS = 4  # a ViT has one stride: its levels are this many blocks, evenly spaced, the last included


def list_names() -> list[str]:
    """All supported names, prefixed with `timm/`."""
    return [f"timm/{name}" for module in FAMILIES for name in timm.list_models(module=module)]


def argument_names(name: str) -> set[str]:
    """The arguments of the class that timm's `name` builds, and of its builder; not those that load files."""
    module = sys.modules[timm.models.model_entrypoint(name.split(".")[0]).__module__]
    kinds = [getattr(module, FAMILIES[module.__name__.rpartition(".")[2]])]
    if kinds[0].__name__ == "RegNet":
        kinds.append(module.RegNetCfg)  # its fields are arguments too
    return {"bn_eps", "bn_momentum"}.union(*(inspect.signature(kind).parameters for kind in kinds)) - {"kwargs"}


def build(name: str, arguments: dict[str, Any], pretrained: bool) -> tuple[OpenedNet, nn.Module | None]:
    """Build and open timm's `name`, and its classifier if any; ValueError if they are not supported."""
    arguments = constructor_arguments(name, arguments)
    if pretrained and not timm.get_pretrained_cfg(name).has_weights:
        raise ValueError(f"timm has no published weights for {name}: pass random:timm/{name} or a checkpoint")
    net = timm.create_model(name, pretrained=pretrained, **arguments)
    classifier = net.get_classifier()
    net.reset_classifier(0)
    tail = _take_last_activation(net, name)
    taken = _taken_levels(net)
    infos = [net.feature_info[i] for i in taken]
    opened = OpenedNet(
        net=net,
        dim=net.head_hidden_size,
        levels=tuple(Level(name=info["module"], channels=info["num_chs"], stride=info["reduction"]) for info in infos),
        trunk=partial(_trunk, taken=taken, norm=not tail),  # a closing norm closes the maps as well
        pool=lambda net, tail: net.forward_head(tail, pre_logits=True),
        has_class_token=getattr(net, "cls_token", None) is not None,
        **tail,
    )
    return opened, classifier if isinstance(classifier, nn.Linear) else None


def constructor_arguments(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that timm gets for `name`: its ViTs are built for images of any size."""
    any_size = timm.models.is_model_in_modules(name.split(".")[0], ["vision_transformer"])
    return {"dynamic_img_size": True, **arguments} if any_size else arguments


def published(name: str, arguments: dict[str, Any]) -> tuple[InputSpec, Licence]:
    """The input and licence in timm's pretrained configuration, at the size that `img_size` in `arguments` builds.

    ValueError if timm has no such tag (after the dot), or for images that are not square RGB.
    """
    if arguments.get("in_chans", 3) != 3:
        raise ValueError(
            f"timm/{name} with in_chans={arguments['in_chans']} takes no RGB images: every net here takes 3 channels, "
            f"so leave in_chans out, and pass weights whose first layer has 3 input channels"
        )
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        architecture = name.split(".")[0]
        tags = timm.list_pretrained(f"{architecture}.*")
        raise ValueError(f"timm has no weights {name}; of {architecture} it has {', '.join(tags) or 'none'}") from error
    sides = arguments.get("img_size", config.input_size[1])
    size, *others = sides if isinstance(sides, list | tuple) else (sides,)
    if others not in ([], [size]):
        raise ValueError(f"timm/{name} with img_size={sides}: images are square here, pass one number")
    interpolation: Any = config.interpolation if config.interpolation in ("bilinear", "bicubic") else "bicubic"
    spec = InputSpec(
        size=size,
        crop_fraction=config.crop_pct,
        resize="squash" if config.crop_mode == "squash" else "short side",
        interpolation=interpolation,
        mean=tuple(config.mean),
        std=tuple(config.std),
    )
    return spec, _licence(config.license)


def _licence(stated: str | None) -> Licence:
    """timm writes licences in lower case (`apache-2.0`, `cc-by-nc-4.0`); free words become a restriction."""
    if stated is None:
        return Licence()
    spdx = {name.lower(): name for name in (*PERMISSIVE_LICENCES, "CC-BY-NC-4.0")}.get(stated.lower())
    return Licence(spdx=spdx) if spdx else Licence(restrictions=(f"weights: {stated}",))


def _take_last_activation(net: Any, name: str) -> dict[str, Any]:
    """Take the last activation out of `net`: the fields of `OpenedNet` about it, none if the net ends in a norm."""
    match type(net).__name__:
        case "ResNet":
            block = net.layer4[-1]
            activation = _take(block, "act3" if hasattr(block, "act3") else "act2")  # Bottleneck, BasicBlock
            return {"last_activation": activation, "last_map_is_tail": True}
        case "RegNet":
            if not isinstance(net.final_conv, nn.Identity):
                raise ValueError(f"timm/{name} has a final convolution, not supported here: use Backbone.from_module")
            return {"last_activation": _take(list(net.s4.children())[-1], "act3"), "last_map_is_tail": True}
        case "EfficientNet":
            if not hasattr(net.bn2, "act"):  # MobileNet-V1, EvoNorm
                raise ValueError(
                    f"timm/{name} has no separate activation after its last convolution, "
                    f"so it is not supported: use Backbone.from_module"
                )
            return {"last_activation": _take(net.bn2, "act")}
        case "MobileNetV3":
            # V4 has a norm after the last convolution, and the activation is part of that norm
            v4 = isinstance(net.act2, nn.Identity)
            activation = _take(net.norm_head, "act") if v4 else _take(net, "act2")
            return {"last_activation": activation, "activation_follows_pool": True}
        case _:
            return {}


def _take(owner: nn.Module, attribute: str) -> nn.Module:
    activation = getattr(owner, attribute)
    setattr(owner, attribute, nn.Identity())
    if hasattr(activation, "inplace"):
        activation.inplace = False  # the tail is read again after it
    return activation


def _taken_levels(net: Any) -> list[int]:
    strides = [info["reduction"] for info in net.feature_info]
    if len(set(strides)) == 1:
        n = len(strides)
        return [n * (i + 1) // _NUM_VIT_LEVELS - 1 for i in range(_NUM_VIT_LEVELS)]
    return [i for i, stride in enumerate(strides) if stride >= 4]


def _trunk(net: Any, images: Tensor, taken: list[int], norm: bool) -> tuple[list[Tensor], Tensor]:
    tail, maps = net.forward_intermediates(images, indices=taken, norm=norm, output_fmt="NCHW")
    return maps, tail
