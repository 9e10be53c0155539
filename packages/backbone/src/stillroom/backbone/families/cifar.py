"""ResNets for 32 px images: `cifar/resnet{20,32,44,56,110}`.

Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2: a 3x3 stem, three stages
of 16, 32, 64 channels with n = (depth - 2) / 6 blocks each, and shortcuts without weights (option A).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.backbone.features import Anatomy, global_average_pool
from stillroom.backbone.spec import InputSpec, Level

DEPTHS = (20, 32, 44, 56, 110)
INPUT = InputSpec(size=32, crop_fraction=1.0)


class ShortcutA(nn.Module):
    """Option A: every second pixel, the new channels filled with zeros. It has no weights."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and an addition; the activation after the addition is a module of its own."""

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


class CifarResNet(nn.Module):
    """The three-stage ResNet of 6n + 2 layers, without a classifier."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        num_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, num_blocks, stride=1)
        self.layer2 = self._stage(16, 32, num_blocks, stride=2)
        self.layer3 = self._stage(32, 64, num_blocks, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(in_channels: int, channels: int, num_blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(num_blocks - 1)))

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(images)))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
            maps.append(x)
        return maps


def list_names() -> list[str]:
    """`cifar/resnet20` to `cifar/resnet110`."""
    return [f"cifar/resnet{depth}" for depth in DEPTHS]


def build(depth: int) -> Anatomy:
    """Open up a CIFAR ResNet with random weights."""
    net = CifarResNet(depth)
    net.layer3[-1].activation = nn.Identity()
    return Anatomy(
        net=net,
        dim=64,
        levels=tuple(
            Level(name=f"layer{i + 1}", channels=c, stride=s) for i, (c, s) in enumerate([(16, 1), (32, 2), (64, 4)])
        ),
        trunk=_trunk,
        pool=global_average_pool,
        last_activation=nn.ReLU(),
        last_map_is_tail=True,
    )


def _trunk(net: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    maps = net(images)
    return maps, maps[-1]
