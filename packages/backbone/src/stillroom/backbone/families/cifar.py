"""ResNets for 32 px images: `cifar/resnet{20,32,44,56,110}`.

Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2: a 3x3 stem, three stages
of 16, 32, 64 channels with n = (depth - 2) / 6 blocks each, and shortcuts without weights (option A).
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.backbone.features import OpenedNet, run_modules
from stillroom.backbone.spec import InputSpec, Level, Licence

DEPTHS = (20, 32, 44, 56, 110)


class ShortcutA(nn.Module):
    """Option A: every second pixel, the new channels filled with zeros; no weights."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and an addition; the activation after the addition is a separate module."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        plain = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if plain else ShortcutA(in_channels, channels, stride)
        self.activation: nn.Module = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.activation(out + self.shortcut(x))


def list_names() -> list[str]:
    """`cifar/resnet20` to `cifar/resnet110`."""
    return [f"cifar/resnet{depth}" for depth in DEPTHS]


def argument_names(name: str) -> set[str]:
    """None."""
    return set()


def published(name: str, arguments: dict[str, Any]) -> tuple[InputSpec, Licence]:
    """The input of every CIFAR ResNet; there are no weights to license."""
    return InputSpec(size=32, crop_fraction=1.0), Licence()


def build(name: str, arguments: dict[str, Any], pretrained: bool) -> tuple[OpenedNet, None]:
    """Build and open a CIFAR ResNet with random weights, no classifier; ValueError for `pretrained`."""
    if pretrained:
        raise ValueError(f"cifar/{name} has no published weights: pass random:cifar/{name} or a checkpoint directory")
    depth = int(name.removeprefix("resnet"))
    net: Any = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(3, 16, 3, 1, 1, bias=False))
    net.add_module("bn1", nn.BatchNorm2d(16))
    net.add_module("relu", nn.ReLU())
    levels, width = [], 16
    for stage, (channels, stride) in enumerate([(16, 1), (32, 2), (64, 2)], start=1):
        first = BasicBlock(width, channels, stride)
        rest = (BasicBlock(channels, channels, 1) for _ in range((depth - 2) // 6 - 1))
        net.add_module(f"layer{stage}", nn.Sequential(first, *rest))
        levels.append(Level(name=f"layer{stage}", channels=channels, stride=2 ** (stage - 1)))
        width = channels
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    net.layer3[-1].activation = nn.Identity()
    stages = [level.name for level in levels]
    opened = OpenedNet(
        net=net,
        dim=width,
        levels=tuple(levels),
        trunk=run_modules(("conv1", "bn1", "relu", *stages), stages),
        last_activation=nn.ReLU(),
        last_map_is_tail=True,
    )
    return opened, None
