"""Batch norms folded into convolutions, in nets of every family."""

import pytest
import torch
from torch import nn

from stillroom.backbone import Backbone, BackboneSpec, build_backbone, weights_sha256
from stillroom.distill.folding import find_pairs, fold_batch_norms
from stillroom.distill.nets import Net
from stillroom.distill.teacher import build_teacher


def shaken(net: nn.Module) -> nn.Module:
    """Batch norms with statistics and weights of their own, as after training."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return net.eval()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("torchvision/resnet18", 20),
        ("torchvision/mobilenet_v2", 52),
        ("timm/resnet18", 20),
        ("timm/mobilenetv2_100", 52),
        ("timm/regnetx_002", 44),
        ("cifar/resnet20", 19),
        ("timm/convnext_atto", 0),
    ],
)
def test_every_batch_norm_is_folded_and_the_features_stay(name: str, count: int) -> None:
    torch.manual_seed(0)
    net = shaken(build_backbone(name))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = net(images)
        assert fold_batch_norms(net, images[:1]) == count
        after = net(images)
    assert not [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for ours, theirs in zip((after.pooled, *after.maps), (before.pooled, *before.maps), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_an_activation_in_between_or_a_shared_convolution_is_not_a_pair() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.bn = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(3)
            self.twice, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn(self.act(self.conv(x)))
            return self.second(self.twice(self.first(self.twice(x))))

    assert find_pairs(Net().eval(), torch.randn(1, 3, 4, 4)) == []


def test_a_net_whose_convolution_output_is_used_elsewhere_is_left_unchanged() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return x + self.bn(x)

    backbone = Backbone.from_module(shaken(Net()), BackboneSpec(name="module/Net", dim=4)).eval()
    images = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        before = backbone(images).pooled
        assert fold_batch_norms(backbone, images) == 0
        assert torch.equal(backbone(images).pooled, before)


def test_a_batch_norm_without_running_statistics_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert find_pairs(net, torch.randn(2, 3, 4, 4)) == []


def test_a_teacher_is_folded_and_keeps_the_hash_of_the_weights_it_came_with() -> None:
    own = build_backbone("cifar/resnet20")
    teacher = build_teacher(Net(name="own"), own)
    assert teacher.sha256 == weights_sha256(own.net)
    assert "bn1.weight" in own.net.state_dict() and "bn1.weight" not in teacher.backbone.net.state_dict()
