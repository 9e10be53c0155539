"""`Backbone` itself: feature points, modules of the user's own, the hash of weights."""

import copy
import hashlib
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, nn

from stillroom.backbone import Backbone, BackboneSpec, Features, Level, build_backbone, weights_sha256

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Pooled(nn.Module):
    """Images to a vector of 5, which may be negative."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.mean(dim=(2, 3)))


class Mapped(nn.Module):
    """Images to a map of 5 channels at stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images)


class Levelled(nn.Module):
    """Images to maps of 4 and 5 channels at strides 2 and 4, and the last one again."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2, 1)
        self.second = nn.Conv2d(4, 5, 3, 2, 1)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        first = self.first(images).relu()
        second = self.second(first)
        return [first, second.relu()], second


def spec_of(dim: int = 5, name: str = "module/Own", **changes: Any) -> BackboneSpec:
    return BackboneSpec(name=name, dim=dim, **changes)


def test_a_module_that_returns_a_vector_is_wrapped() -> None:
    module = Pooled()
    features = Backbone.from_module(module, spec_of())(IMAGES)
    assert torch.equal(features.pooled, module(IMAGES))
    assert features.maps == ()


def test_a_module_that_returns_a_map_is_averaged() -> None:
    module = Mapped()
    features = Backbone.from_module(module, spec_of())(IMAGES)
    assert torch.equal(features.pooled, module(IMAGES).mean(dim=(2, 3)))


def test_a_module_with_levels_gives_its_maps() -> None:
    module = Levelled()
    levels = (Level(name="first", channels=4, stride=2), Level(name="second", channels=5, stride=4))
    features = Backbone.from_module(module, spec_of(levels=levels))(IMAGES)
    maps, tail = module(IMAGES)
    assert all(torch.equal(ours, own) for ours, own in zip(features.maps, maps, strict=True))
    assert torch.equal(features.pooled, tail.mean(dim=(2, 3)))


@pytest.mark.parametrize("name", ["mine", "timm/resnet18", "modules/Pooled"])
def test_a_net_of_ones_own_is_not_called_like_a_librarys(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is not the name of your own net: name it module/Pooled"):
        Backbone.from_module(Pooled(), spec_of(name=name))


@pytest.mark.parametrize("dim", [4, 6])
def test_a_module_whose_output_does_not_fit_its_spec_is_refused(dim: int) -> None:
    sentence = rf"module/Own returned a tensor of shape \(2, 5\): expected \(b, {dim}\) or \(b, {dim}, h, w\)"
    with pytest.raises(ValueError, match=sentence):
        Backbone.from_module(Pooled(), spec_of(dim))(IMAGES)


def test_a_module_that_returns_tokens_is_refused() -> None:
    tokens = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.Flatten(2))
    with pytest.raises(ValueError, match=r"module/Own returned a tensor of shape \(2, 5, 9\)"):
        Backbone.from_module(tokens, spec_of())(IMAGES)


@pytest.mark.parametrize(("pre_activation", "here", "other"), [(False, "after", "before"), (True, "before", "after")])
def test_the_other_feature_point_of_a_module_needs_its_last_activation(
    pre_activation: bool, here: str, other: str
) -> None:
    backbone = Backbone.from_module(Pooled(), spec_of(pre_activation=pre_activation))
    assert backbone.at(here) is backbone
    sentence = f"module/Own returns its feature {here} the last activation: for `{other}` pass last_activation to"
    with pytest.raises(ValueError, match=sentence):
        backbone.at(other)


@pytest.mark.parametrize("pre_activation", [False, True])
def test_a_module_with_its_last_activation_has_both_feature_points(pre_activation: bool) -> None:
    module = Mapped()
    backbone = Backbone.from_module(module, spec_of(pre_activation=pre_activation), last_activation=nn.ReLU())
    assert torch.equal(backbone.at("before")(IMAGES).pooled, module(IMAGES).mean(dim=(2, 3)))
    assert torch.equal(backbone.at("after")(IMAGES).pooled, module(IMAGES).relu().mean(dim=(2, 3)))


def test_the_other_feature_point_shares_the_weights() -> None:
    backbone = build_backbone("cifar/resnet20").eval()
    twin = backbone.at("before")
    assert twin.net is backbone.net
    assert (backbone.spec.pre_activation, twin.spec.pre_activation) == (False, True)
    with torch.no_grad():
        backbone.net.conv1.weight.mul_(2)
    assert torch.equal(twin(IMAGES).maps[0], backbone(IMAGES).maps[0])
    assert twin(IMAGES).pooled.min() < 0 <= backbone(IMAGES).pooled.min()
    assert twin.at("after").spec == backbone.spec


def test_none_keeps_the_feature_point() -> None:
    for backbone in (build_backbone("cifar/resnet20"), build_backbone("cifar/resnet20", feature="before")):
        assert backbone.at(None) is backbone


def test_a_copy_of_a_backbone_has_weights_of_its_own() -> None:
    backbone = build_backbone("cifar/resnet20").eval()
    before = backbone(IMAGES).pooled
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        other.net.conv1.weight.mul_(2)
    assert torch.equal(backbone(IMAGES).pooled, before)
    assert not torch.equal(other(IMAGES).pooled, before)


def test_images_of_the_wrong_shape_or_type_are_refused_in_tests() -> None:
    backbone = build_backbone("cifar/resnet20")
    for wrong in (torch.zeros(3, 12, 12), torch.zeros(2, 1, 12, 12), torch.zeros(2, 3, 12, 12, dtype=torch.uint8)):
        with pytest.raises(TypeCheckError):
            backbone(wrong)


def test_features_hold_one_row_per_image_in_the_order_of_the_images() -> None:
    backbone = build_backbone("cifar/resnet20").eval()
    features: Features = backbone(IMAGES)
    flipped = backbone(IMAGES.flip(0))
    torch.testing.assert_close(flipped.pooled.flip(0), features.pooled)
    torch.testing.assert_close(flipped.maps[0].flip(0), features.maps[0])


def holding(name: str, tensor: Tensor) -> nn.Module:
    module = nn.Module()
    module.register_buffer(name, tensor)
    return module


def test_the_hash_of_weights_sees_name_type_shape_and_every_bit() -> None:
    ones = torch.ones(4)
    others = [
        holding("y", ones),
        holding("x", ones.view(torch.int32)),
        holding("x", ones.view(2, 2)),
        holding("x", torch.nextafter(ones, 2 * ones)),
        holding("x", ones[:3]),
    ]
    hashes = [weights_sha256(module) for module in (holding("x", ones), *others)]
    assert len(set(hashes)) == len(hashes)
    assert weights_sha256(holding("x", torch.ones(8)[::2])) == hashes[0]  # not how it lies in memory


def test_the_hash_of_weights_is_that_of_their_bytes() -> None:
    linear = nn.Linear(1, 2)
    linear.load_state_dict({"weight": torch.tensor([[1.0], [2.0]]), "bias": torch.tensor([0.5, -0.5])})
    by_hand = (
        b"bias torch.float32 (2,)\n\x00\x00\x00\x3f\x00\x00\x00\xbf"
        b"weight torch.float32 (2, 1)\n\x00\x00\x80\x3f\x00\x00\x00\x40"
    )
    assert weights_sha256(linear) == hashlib.sha256(by_hand).hexdigest()
