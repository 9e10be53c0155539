"""SimCLR's wide ResNet: `simclr/resnet50x4`, a ResNet-50 whose every width is four times as large, pooled 8192-d.

Reference: Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020, section 4; the key names are those of
torchvision's ResNet, as its converted files have them.
"""

from typing import Any

from torch import nn
from torchvision.models.resnet import Bottleneck, resnet50

from stillroom.backbone.families.torchvision import open_resnet
from stillroom.backbone.features import OpenedNet
from stillroom.backbone.spec import InputSpec, Licence

WIDTHS = {"resnet50x4": 4}


def list_names() -> list[str]:
    """All names, prefixed with `simclr/`."""
    return [f"simclr/{name}" for name in WIDTHS]


def argument_names(name: str) -> set[str]:
    """None."""
    return set()


def published(name: str, arguments: dict[str, Any]) -> tuple[InputSpec, Licence]:
    """SimCLR's input: pixels in [0, 1] without mean and standard deviation."""
    return InputSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), Licence()


def build(name: str, arguments: dict[str, Any], pretrained: bool) -> tuple[OpenedNet, nn.Module]:
    """Build and open the net with random weights, and its classifier; ValueError for `pretrained`."""
    if pretrained:
        raise ValueError(f"simclr/{name} is published as a file only: import it, or pass random:simclr/{name}")
    width = WIDTHS[name]
    net = resnet50()
    stem = 64 * width
    net.inplanes = stem
    net.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
    net.bn1 = nn.BatchNorm2d(stem)
    for stage, (planes, blocks, stride) in enumerate(((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)), start=1):
        setattr(net, f"layer{stage}", net._make_layer(Bottleneck, planes * width, blocks, stride))
    net.fc = nn.Linear(2048 * width, 1000)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return open_resnet(net)
