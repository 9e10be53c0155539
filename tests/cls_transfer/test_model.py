"""The classifier on a backbone."""

import pytest
import torch
from torch import nn

from stillroom.backbone import Backbone, BackboneSpec, InputSpec, build_backbone, replace_input
from stillroom.cls_transfer import Classifier
from stillroom.cls_transfer.model import build_groups, build_layers, parameters_by_level


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("distilled_at", ["before", "after"])
def test_logits_come_from_the_feature_after_the_last_activation(distilled_at: str, images: torch.Tensor) -> None:
    torch.manual_seed(1)
    backbone = build_backbone("cifar/resnet20", feature=distilled_at).eval()
    model = Classifier(backbone, build_layers(64, 5)).eval()
    activated = backbone(images).maps[-1].mean(dim=(2, 3))  # maps are always after the activation
    expected = activated @ model.head[0].weight.T + model.head[0].bias
    torch.testing.assert_close(model(images), expected)
    assert not model.backbone.spec.pre_activation


def test_a_module_of_ones_own_is_read_before_its_activation_and_activated(images: torch.Tensor) -> None:
    class Colours(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3))

    spec = BackboneSpec(name="module/Colours", dim=3, pre_activation=True, input=InputSpec(size=16))
    model = Classifier(Backbone.from_module(Colours(), spec, last_activation=nn.ReLU()), build_layers(3, 2))
    with torch.no_grad():
        model.head[0].weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
        model.head[0].bias.copy_(torch.tensor([0.0, 2.0]))
    colours = images.mean(dim=(2, 3)).clamp(min=0)
    torch.testing.assert_close(model(images), torch.stack([colours[:, 0], colours.sum(dim=1) + 2], dim=1))


def test_the_backbone_is_shared_not_copied() -> None:
    backbone = build_backbone("cifar/resnet20", feature="before")
    model = Classifier(backbone, build_layers(64, 2))
    assert model.backbone.net is backbone.net
    assert backbone.spec.pre_activation  # the caller's own view of it stays


def test_gradients_reach_every_parameter(images: torch.Tensor) -> None:
    model = Classifier(build_backbone("cifar/resnet20", feature="before"), build_layers(64, 3))
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert {"head.0.weight", "head.0.bias"} < {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    "name",
    [
        "cifar/resnet20",
        "torchvision/resnet18",
        "timm/mobilenetv2_100",
        "timm/convnext_atto",
        "timm/vit_tiny_patch16_224",
    ],
)
def test_each_parameter_belongs_to_the_first_level_that_it_moves(name: str) -> None:
    torch.manual_seed(0)
    backbone = replace_input(build_backbone(name), size=64 if "vit" not in name else 224).eval()
    levels = parameters_by_level(backbone)
    assert sorted(n for names in levels for n in names) == sorted(n for n, _ in backbone.net.named_parameters())
    assert len(levels) == len(backbone.spec.levels) + 1
    side = backbone.spec.input.size
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        before = backbone(images).maps
        parameters = dict(backbone.net.named_parameters())
        for depth, names in enumerate(levels[:-1]):
            parameter = parameters[names[0]]
            kept = parameter.clone()
            parameter.add_(torch.randn_like(parameter))
            after = backbone(images).maps
            parameter.copy_(kept)
            moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
            assert not any(moved[:depth]) and moved[depth]


def test_what_is_frozen_neither_learns_nor_counts(images: torch.Tensor) -> None:
    model = Classifier(build_backbone("cifar/resnet20"), build_layers(64, 3), freeze=2).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(build_groups(model, 1.0), lr=0.1)
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    levels = parameters_by_level(build_backbone("cifar/resnet20"))
    frozen = {f"backbone.net.{name.rpartition('.')[0]}" for names in levels[:2] for name in names}
    assert not {name for name in moved if name.rpartition(".")[0] in frozen}
    assert {f"backbone.net.{name}" for name in levels[2]} < moved and "head.0.weight" in moved
    assert any("running_mean" in name for name in moved)
    with pytest.raises(ValueError, match="--freeze is 4: cifar/resnet20 has 3 levels"):
        Classifier(build_backbone("cifar/resnet20"), build_layers(64, 3), freeze=4)


def test_rates_fall_from_the_head_to_the_first_level() -> None:
    model = Classifier(build_backbone("cifar/resnet20"), build_layers(64, 3, hidden=(8,)))
    groups = build_groups(model, 0.5)
    assert [group["scale"] for group in groups] == [1.0, 0.5, 0.25, 0.125]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    own = {id(p) for p in groups[-1]["params"]}
    assert id(model.backbone.net.conv1.weight) in own
    frozen = Classifier(build_backbone("cifar/resnet20"), build_layers(64, 3), freeze=1)
    assert len(build_groups(frozen, 0.5)) == 3


def test_hidden_layers_are_between_feature_and_logits() -> None:
    head = build_layers(64, 3, hidden=(16, 8))
    assert [type(layer).__name__ for layer in head] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert [layer.out_features for layer in head if isinstance(layer, nn.Linear)] == [16, 8, 3]


def test_convolutions_see_channels_last_images_and_weights() -> None:
    model = Classifier(build_backbone("cifar/resnet20"), build_layers(64, 5))
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    seen: list[bool] = []

    def note(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        for tensor in (given[0], module.weight):
            seen.append(tensor.is_contiguous(memory_format=torch.channels_last))

    for convolution in convolutions:
        convolution.register_forward_pre_hook(note)
    model(torch.randn(4, 3, 16, 16))
    assert len(seen) == 2 * len(convolutions) and all(seen)


def test_stochastic_depth_of_a_frozen_level_stays_off() -> None:
    torch.manual_seed(0)
    backbone = replace_input(
        build_backbone("torchvision/convnext_tiny", arguments={"stochastic_depth_prob": 0.9}), size=64
    )
    model = Classifier(backbone, build_layers(768, 3), freeze=2).train()
    images = torch.randn(2, 3, 64, 64)
    maps = [[model.backbone(images).maps[level] for _ in range(2)] for level in (1, 3)]
    assert torch.equal(*maps[0]) and not torch.equal(*maps[1])
