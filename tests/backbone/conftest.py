"""One small member of every family of nets, each opened by us and, untouched, by its own library."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from stillroom.backbone import Backbone, build_backbone


@dataclass(frozen=True)
class Family:
    """A net of a family.

    Args:
        name, arguments: as `build_backbone` takes them; the arguments keep the net small.
        classifier: prefix of the classifier's keys in the library's own net; what enters that module is the pooled
            feature.
        last_activation: its name in the library's own net; None for nets that end in a norm.
        ends_in_a_map: the last level is what is pooled (ResNet), not an earlier map (MobileNet-V2).
        sizes: two input sides, px.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    classifier: str = "fc"
    last_activation: str | None = None
    ends_in_a_map: bool = False
    sizes: tuple[int, int] = (64, 75)


FAMILIES = {
    family.name: family
    for family in (
        Family("cifar/resnet20", {}, "fc", "layer3.2.relu2", True, (32, 45)),
        Family("torchvision/resnet18", {}, "fc", "layer4.1.relu", True),
        Family("torchvision/resnet50", {"groups": 4, "width_per_group": 4}, "fc", "layer4.2.relu", True),
        Family("torchvision/mobilenet_v2", {"width_mult": 0.5}, "classifier", "features.18.2"),
        Family("torchvision/mobilenet_v3_small", {}, "classifier", "features.12.2"),
        Family("torchvision/mobilenet_v3_large", {}, "classifier", "features.16.2"),
        Family("torchvision/efficientnet_b0", {}, "classifier", "features.8.2"),
        Family("torchvision/efficientnet_v2_s", {}, "classifier", "features.7.2"),
        Family("torchvision/regnet_y_400mf", {}, "fc", "trunk_output.block4.block4-5.activation", True),
        Family("torchvision/convnext_tiny", {}, "classifier.2", sizes=(64, 96)),
        Family("timm/resnet18", {}, "fc", "layer4.1.act2", True),
        Family("timm/resnet26", {"layers": [1, 1, 1, 2], "base_width": 16}, "fc", "layer4.1.act3", True),
        Family("timm/mobilenetv2_100", {}, "classifier", "bn2.act"),
        Family("timm/mobilenetv3_small_050", {}, "classifier", "act2"),
        Family("timm/mobilenetv4_conv_small_035", {}, "classifier", "norm_head.act"),
        Family("timm/efficientnet_lite0", {}, "classifier", "bn2.act"),
        Family("timm/regnety_002", {}, "head.fc", "s4.b7.act3", True),
        Family("timm/convnext_atto", {"depths": [1, 1, 2, 1]}, "head.fc", sizes=(64, 96)),
        Family("timm/vit_tiny_patch16_224", {"depth": 8}, "head", sizes=(64, 96)),
        Family(
            "timm/vit_small_patch16_dinov3",
            {"depth": 4, "embed_dim": 96, "num_heads": 3, "num_classes": 7},
            "head",
            sizes=(64, 96),
        ),
        Family(
            "timm/swin_tiny_patch4_window7_224",
            {"depths": [1, 1, 2, 1], "embed_dim": 24, "img_size": 64, "window_size": 4},
            "head.fc",
            sizes=(64, 64),  # the only size this Swin takes
        ),
    )
}


class PaperBlock(nn.Module):
    """Two convolutions around option A's shortcut, as section 4.2 of He et al. (CVPR 2016) says it."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        shortcut = torch.zeros_like(out)
        shortcut[:, : x.shape[1]] = x[:, :, :: self.stride, :: self.stride]
        return self.relu2(out + shortcut)


class PaperResNet20(nn.Module):
    """6n + 2 layers with n = 3, written apart from ours, with its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(PaperBlock(16, 16, 1), PaperBlock(16, 16, 1), PaperBlock(16, 16, 1))
        self.layer2 = nn.Sequential(PaperBlock(16, 32, 2), PaperBlock(32, 32, 1), PaperBlock(32, 32, 1))
        self.layer3 = nn.Sequential(PaperBlock(32, 64, 2), PaperBlock(64, 64, 1), PaperBlock(64, 64, 1))
        self.fc = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))


def _shake(net: nn.Module) -> None:
    """Norms, biases and layer scales away from 0 and 1, where many mistakes do not show."""
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() == max(tensor.shape, default=1):
            low, high = (-0.3, 0.3) if name.endswith(("bias", "running_mean")) else (0.5, 1.5)
            tensor.uniform_(low, high)


@cache
def _opened(name: str) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = build_backbone(name, arguments=FAMILIES[name].arguments).eval().requires_grad_(False)
        _shake(backbone.net)
    return backbone


@cache
def _library_net(name: str) -> nn.Module:
    library, _, short = name.partition("/")
    arguments = FAMILIES[name].arguments
    if library == "cifar":
        net: nn.Module = PaperResNet20()
    elif library == "timm":
        # the library interpolates position embeddings to another size only when asked to
        dynamic = {"dynamic_img_size": True} if short.startswith("vit_tiny") else {}
        net = timm.create_model(short, **(arguments | dynamic))
    else:
        net = torchvision.models.get_model(short, weights=None, **arguments)
    net.load_state_dict(net.state_dict() | _opened(name).net.state_dict())  # strict: no key of ours is foreign to it
    return net.eval().requires_grad_(False)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    """Each family in turn."""
    return FAMILIES[request.param]


@pytest.fixture
def opened(family: Family) -> Backbone:
    """Our backbone of this family, in evaluation mode. Shared by all tests: not to be changed."""
    return _opened(family.name)


@pytest.fixture
def library_net(family: Family) -> nn.Module:
    """The library's own net of this family, untouched, classifier and all, with the weights of `opened`."""
    return _library_net(family.name)
