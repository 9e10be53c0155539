"""BYOL's ResNet-50: `byol/resnet50`, torchvision's layers and key names, padded as TensorFlow's SAME does.

On even sides SAME pads a strided window below and to the right only, torchvision above and to the left as well: the
same weights give other features.

Reference: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020; the files are its released weights as SimReg
converts them.
"""

from typing import Any

from timm.layers import Conv2dSame, create_pool2d
from torch import nn
from torchvision.models import resnet50

from stillroom.backbone.families import torchvision
from stillroom.backbone.families.torchvision import open_resnet
from stillroom.backbone.features import OpenedNet
from stillroom.backbone.spec import InputSpec, Licence


def list_names() -> list[str]:
    """The one name."""
    return ["byol/resnet50"]


def argument_names(name: str) -> set[str]:
    """The arguments of torchvision's resnet50."""
    return torchvision.argument_names(name)


def published(name: str, arguments: dict[str, Any]) -> tuple[InputSpec, Licence]:
    """The input that SimReg feeds it: 224 of 256 px, bilinear, ImageNet's mean and standard deviation."""
    return InputSpec(), Licence()


def build(name: str, arguments: dict[str, Any], pretrained: bool) -> tuple[OpenedNet, nn.Module]:
    """Build and open the net with random weights, and its classifier; ValueError for `pretrained`."""
    if pretrained:
        raise ValueError(f"byol/{name} is published as a file only: import it, or pass random:byol/{name}")
    net: Any = resnet50(**arguments)
    for parent in [*net.modules()]:
        for child_name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and child.kernel_size != (1, 1) and child.stride != (1, 1):
                same = Conv2dSame(child.in_channels, child.out_channels, child.kernel_size, child.stride, bias=False)
                same.weight = child.weight
                setattr(parent, child_name, same)
    net.maxpool = create_pool2d("max", 3, 2, padding="same")
    return open_resnet(net)
