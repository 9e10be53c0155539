"""The classifier on a backbone."""

import pytest
import torch
from torch import nn

from stillroom.backbone import Backbone, BackboneSpec, InputSpec, build_backbone
from stillroom.cls_transfer import Classifier


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("distilled_at", ["before", "after"])
def test_logits_come_from_the_feature_after_the_last_activation(distilled_at: str, images: torch.Tensor) -> None:
    torch.manual_seed(1)
    backbone = build_backbone("cifar/resnet20", feature=distilled_at).eval()
    model = Classifier(backbone, 5).eval()
    activated = backbone(images).maps[-1].mean(dim=(2, 3))  # maps are always after the activation
    expected = activated @ model.linear.weight.T + model.linear.bias
    torch.testing.assert_close(model(images), expected)
    assert not model.backbone.spec.pre_activation


def test_a_module_of_ones_own_is_read_before_its_activation_and_activated(images: torch.Tensor) -> None:
    class Colours(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3))

    spec = BackboneSpec(name="module/Colours", dim=3, pre_activation=True, input=InputSpec(size=16))
    model = Classifier(Backbone.from_module(Colours(), spec, last_activation=nn.ReLU()), 2)
    with torch.no_grad():
        model.linear.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
        model.linear.bias.copy_(torch.tensor([0.0, 2.0]))
    colours = images.mean(dim=(2, 3)).clamp(min=0)
    torch.testing.assert_close(model(images), torch.stack([colours[:, 0], colours.sum(dim=1) + 2], dim=1))


def test_the_backbone_is_shared_not_copied() -> None:
    backbone = build_backbone("cifar/resnet20", feature="before")
    model = Classifier(backbone, 2)
    assert model.backbone.net is backbone.net
    assert backbone.spec.pre_activation  # the caller's own view of it stays


def test_gradients_reach_every_parameter(images: torch.Tensor) -> None:
    model = Classifier(build_backbone("cifar/resnet20", feature="before"), 3)
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert {"linear.weight", "linear.bias"} < {name for name, _ in model.named_parameters()}
