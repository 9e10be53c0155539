"""Nets of torchvision: ResNet, ResNeXt, Wide ResNet, MobileNet-V2 and V3, EfficientNet, RegNet, ConvNeXt."""

import inspect
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import MobileNetV3
from torchvision.models.resnet import BasicBlock, Bottleneck

from stillroom.backbone.features import OpenedNet, run_modules
from stillroom.backbone.spec import InputSpec, Level, Licence

# The last block at each stride 4, 8, 16, 32 of the nets whose trunk is one `features` Sequential.
_FEATURE_LEVELS = {
    "mobilenet_v2": (3, 6, 13, 17),
    "mobilenet_v3_large": (3, 6, 12, 15),
    "mobilenet_v3_small": (1, 3, 8, 11),
    "efficientnet": (2, 3, 5, 7),
    "efficientnet_v2": (2, 3, 5, -2),
    "convnext": (1, 3, 5, 7),
}
_STRIDES = (4, 8, 16, 32)
_PREFIXES = ("resnet", "resnext", "wide_resnet", "mobilenet_v", "efficientnet_", "regnet_", "convnext_")


def list_names() -> list[str]:
    """All supported names, prefixed with `torchvision/`."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [f"torchvision/{name}" for name in names if name.startswith(_PREFIXES)]


def argument_names(name: str) -> set[str]:
    """The arguments of the class that torchvision's `name` builds."""
    kind = torchvision.models.get_model_builder(name).__annotations__["return"]
    names = {key for key, one in inspect.signature(kind).parameters.items() if one.kind != one.VAR_KEYWORD}
    return names | {"width_mult", "reduced_tail", "dilated"} if kind is MobileNetV3 else names


def build(name: str, arguments: dict[str, Any], pretrained: bool) -> tuple[OpenedNet, nn.Module]:
    """Build and open torchvision's `name`; its classifier is returned with it."""
    net = torchvision.models.get_model(name, weights=None, **arguments)
    if pretrained:
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        net.load_state_dict(torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True))
    if name.startswith(("resnet", "resnext", "wide_resnet")):
        return open_resnet(net)
    if name.startswith("regnet_"):
        return _open_regnet(net)
    if name.startswith("convnext_"):
        return _open_convnext(net)
    family = "efficientnet_v2" if name.startswith("efficientnet_v2") else name.removesuffix(name[-3:])
    return _open_inverted_residuals(net, _FEATURE_LEVELS[name if name in _FEATURE_LEVELS else family])


def published(name: str, arguments: dict[str, Any]) -> tuple[InputSpec, Licence]:
    """The input that torchvision's default weights for `name` were evaluated with, and their licence."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    size = preset.crop_size[0]
    spec = InputSpec(
        size=size,
        crop_fraction=size / preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    stated = weights.meta.get("license")  # torchvision states one only where it is not its own (SWAG: non-commercial)
    return spec, Licence(spdx="BSD-3-Clause", restrictions=(f"weights: {stated}",) if stated else ())


class LinearTail(nn.Module):
    """The last block of a ResNet without the ReLU after its addition, over the same weights and names.

    torchvision's blocks use one ReLU module in all places, so the last use cannot be taken out of them.
    """

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)
        self.downsample = block.downsample  # None is no child
        self.relu: nn.Module = block.relu
        self.num_convs = 3 if isinstance(block, Bottleneck) else 2

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i in range(1, self.num_convs + 1):
            out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(out))
            if i < self.num_convs:
                out = self.relu(out)
        return out + (x if self.downsample is None else self.downsample(x))


def open_resnet(net: Any) -> tuple[OpenedNet, nn.Module]:
    """Open any net with the layout of torchvision's ResNet."""
    classifier, net.fc = net.fc, nn.Identity()
    net.layer4[-1] = LinearTail(net.layer4[-1])
    stages = ("layer1", "layer2", "layer3", "layer4")
    # `replace_stride_with_dilation` keeps the resolution of later stages
    strides = tuple(accumulate((getattr(net, name)[0].stride for name in stages[1:]), mul, initial=_STRIDES[0]))
    modules = ("conv1", "bn1", "relu", "maxpool", *stages)
    tail: dict[str, Any] = {"last_activation": nn.ReLU(), "last_map_is_tail": True}
    return _open(net, classifier.in_features, modules, stages, strides, **tail), classifier


def _open_regnet(net: Any) -> tuple[OpenedNet, nn.Module]:
    classifier, net.fc = net.fc, nn.Identity()
    list(net.trunk_output[-1].children())[-1].activation = nn.Identity()
    stages = [f"trunk_output.{name}" for name, _ in net.trunk_output.named_children()]
    tail: dict[str, Any] = {"last_activation": nn.ReLU(), "last_map_is_tail": True}
    return _open(net, classifier.in_features, ["stem", *stages], stages, **tail), classifier


def _open_convnext(net: Any) -> tuple[OpenedNet, nn.Module]:
    # The norm between pooling and classifier belongs to the backbone; only the last Linear is the head.
    classifier, net.classifier[2] = net.classifier[2], nn.Identity()
    blocks = [f"features.{i}" for i in range(len(net.features))]
    taken = [blocks[i] for i in _FEATURE_LEVELS["convnext"]]
    opened = _open(net, classifier.in_features, blocks, taken, pool=lambda net, tail: net.classifier(net.avgpool(tail)))
    return opened, classifier


def _open_inverted_residuals(net: Any, indices: tuple[int, ...]) -> tuple[OpenedNet, nn.Module]:
    classifier, net.classifier = net.classifier, nn.Identity()
    last = net.features[-1]  # convolution, norm, activation
    activation, last[2] = last[2], nn.Identity()
    activation.inplace = False
    blocks = [f"features.{i}" for i in range(len(net.features))]
    taken = [blocks[i] for i in indices]
    return _open(net, last[0].out_channels, blocks, taken, last_activation=activation), classifier


def _open(
    net: nn.Module,
    dim: int,
    modules: Sequence[str],
    taken: Sequence[str],
    strides: tuple[int, ...] = _STRIDES,
    **rest: Any,
) -> OpenedNet:
    levels = tuple(
        Level(name=name, channels=_out_channels(net.get_submodule(name)), stride=stride)
        for name, stride in zip(taken, strides, strict=True)
    )
    return OpenedNet(net=net, dim=dim, levels=levels, trunk=run_modules(modules, taken), **rest)


def _out_channels(stage: nn.Module) -> int:
    """The width of a stage's last convolution or (ConvNeXt) linear layer."""
    last = [module for module in stage.modules() if isinstance(module, nn.Conv2d | nn.Linear)][-1]
    return last.out_channels if isinstance(last, nn.Conv2d) else last.out_features
