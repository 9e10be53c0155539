"""Nets of torchvision: ResNet, ResNeXt, Wide ResNet, MobileNet-V2 and V3, EfficientNet, RegNet, ConvNeXt."""

from collections.abc import Callable
from itertools import accumulate
from operator import mul
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from stillroom.backbone.features import Anatomy, global_average_pool
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
    """All supported names, `torchvision/` in front."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [f"torchvision/{name}" for name in names if name.startswith(_PREFIXES)]


def build(name: str, arguments: dict[str, Any], pretrained: bool) -> tuple[Anatomy, nn.Module]:
    """Open up torchvision's `name`; the classifier comes back beside it."""
    net = torchvision.models.get_model(name, weights=None, **arguments)
    if pretrained:
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        net.load_state_dict(torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True))
    if name.startswith(("resnet", "resnext", "wide_resnet")):
        return open_resnet(net)
    if name.startswith("regnet_"):
        return _regnet(net)
    if name.startswith("convnext_"):
        return _convnext(net)
    family = "efficientnet_v2" if name.startswith("efficientnet_v2") else name.removesuffix(name[-3:])
    return _inverted_residuals(net, _FEATURE_LEVELS[name if name in _FEATURE_LEVELS else family])


def published(name: str) -> tuple[InputSpec, Licence]:
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
    """The last block of a ResNet without the ReLU behind its addition, over the same weights and names.

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


def open_resnet(net: Any) -> tuple[Anatomy, nn.Module]:
    """Open up any net with the layout of torchvision's ResNet."""
    classifier, net.fc = net.fc, nn.Identity()
    net.layer4[-1] = LinearTail(net.layer4[-1])
    names = ("layer1", "layer2", "layer3", "layer4")
    # `replace_stride_with_dilation` keeps the resolution of later stages
    strides = tuple(accumulate((getattr(net, name)[0].stride for name in names[1:]), mul, initial=_STRIDES[0]))

    def trunk(net: Any, images: Tensor) -> tuple[list[Tensor], Tensor]:
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        maps = []
        for name in names:
            x = getattr(net, name)(x)
            maps.append(x)
        return maps, x

    anatomy = Anatomy(
        net=net,
        dim=classifier.in_features,
        levels=_levels(names, [getattr(net, name) for name in names], strides),
        trunk=trunk,
        pool=global_average_pool,
        last_activation=nn.ReLU(),
        last_map_is_tail=True,
    )
    return anatomy, classifier


def _regnet(net: Any) -> tuple[Anatomy, nn.Module]:
    classifier, net.fc = net.fc, nn.Identity()
    list(net.trunk_output[-1].children())[-1].activation = nn.Identity()
    names = [f"trunk_output.{name}" for name, _ in net.trunk_output.named_children()]

    def trunk(net: Any, images: Tensor) -> tuple[list[Tensor], Tensor]:
        x = net.stem(images)
        maps = []
        for stage in net.trunk_output:
            x = stage(x)
            maps.append(x)
        return maps, x

    anatomy = Anatomy(
        net=net,
        dim=classifier.in_features,
        levels=_levels(names, list(net.trunk_output)),
        trunk=trunk,
        pool=global_average_pool,
        last_activation=nn.ReLU(),
        last_map_is_tail=True,
    )
    return anatomy, classifier


def _convnext(net: Any) -> tuple[Anatomy, nn.Module]:
    # The norm between pooling and classifier belongs to the backbone; only the last Linear is the head.
    classifier, net.classifier[2] = net.classifier[2], nn.Identity()
    taken = _FEATURE_LEVELS["convnext"]

    def pool(net: Any, tail: Tensor) -> Tensor:
        return net.classifier(net.avgpool(tail))

    anatomy = Anatomy(
        net=net,
        dim=classifier.in_features,
        levels=_levels([f"features.{i}" for i in taken], [net.features[i] for i in taken]),
        trunk=_run_features(taken),
        pool=pool,
    )
    return anatomy, classifier


def _inverted_residuals(net: Any, taken: tuple[int, ...]) -> tuple[Anatomy, nn.Module]:
    taken = tuple(i % len(net.features) for i in taken)
    classifier, net.classifier = net.classifier, nn.Identity()
    last = net.features[-1]  # convolution, norm, activation
    activation, last[2] = last[2], nn.Identity()
    activation.inplace = False
    anatomy = Anatomy(
        net=net,
        dim=last[0].out_channels,
        levels=_levels([f"features.{i}" for i in taken], [net.features[i] for i in taken]),
        trunk=_run_features(taken),
        pool=global_average_pool,
        last_activation=activation,
    )
    return anatomy, classifier


def _run_features(taken: tuple[int, ...]) -> Callable[[nn.Module, Tensor], tuple[list[Tensor], Tensor]]:
    def trunk(net: Any, images: Tensor) -> tuple[list[Tensor], Tensor]:
        x, maps = images, []
        for i, stage in enumerate(net.features):
            x = stage(x)
            if i in taken:
                maps.append(x)
        return maps, x

    return trunk


def _levels(names: Any, stages: list[nn.Module], strides: tuple[int, ...] = _STRIDES) -> tuple[Level, ...]:
    return tuple(
        Level(name=name, channels=_out_channels(stage), stride=stride)
        for name, stage, stride in zip(names, stages, strides, strict=True)
    )


def _out_channels(stage: nn.Module) -> int:
    """The width of a stage's last convolution or (ConvNeXt) linear layer."""
    last = [module for module in stage.modules() if isinstance(module, nn.Conv2d | nn.Linear)][-1]
    return last.out_channels if isinstance(last, nn.Conv2d) else last.out_features
