"""Backbones into torchvision's detectors and back: names, features, frozen norms."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from stillroom.backbone import Backbone, CheckpointError, Normalize, build_backbone
from stillroom.convert.bridge import assert_same
from stillroom.det_transfer import DetectConfig
from stillroom.det_transfer.backends.torchvision.nets import build_detector, image_arguments
from stillroom.det_transfer.levels import anchor_sides, pyramid_strides

Make = Callable[..., DetectConfig]
Lively = Callable[[str], Backbone]


def cross(config: DetectConfig, backbone: Backbone) -> tuple[Any, Any]:
    """The backbone in a detector of two classes."""
    empty = copy.deepcopy(backbone)
    for tensor in empty.state_dict().values():
        tensor.zero_()
    model, bridge = build_detector(config, empty, 2)
    bridge.load(model, backbone)
    return model.eval(), bridge


NETS = (
    "torchvision/resnet18",
    "torchvision/mobilenet_v2",
    "timm/resnet18",
    "timm/mobilenetv2_100",
    "timm/convnext_atto",
)


@pytest.mark.parametrize("name", NETS)
def test_every_level_is_equal_to_the_bit(make_config: Make, lively: Lively, name: str) -> None:
    backbone = lively(name)
    model, _ = cross(make_config(), backbone)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = backbone(images).maps, model.backbone.body(images)
    assert len(ours) == len(theirs) == 4
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs.values(), strict=True))
    assert list(model.backbone(images)) == ["0", "1", "2", "3", "pool"]


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
def test_c4_uses_the_last_stage_as_the_head(make_config: Make, lively: Lively, name: str) -> None:
    backbone = lively(name).at("after")
    model, _ = cross(make_config(neck="c4"), backbone)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = backbone(images)
        ((_, map_),) = model.backbone(images).items()
        assert torch.equal(map_, features.maps[2])
        assert torch.equal(model.roi_heads.box_head(map_), features.pooled), "with the whole image as the box"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in NETS),
        ("torchvision/resnet50", {"neck": "c4"}),
        ("timm/resnet18", {"neck": "c4"}),
        ("timm/vit_tiny_patch16_224", {}),
        ("torchvision/resnet18", {"detector": "retinanet"}),
    ],
)
def test_a_round_trip_is_equal_to_the_bit(make_config: Make, lively: Lively, name: str, changes: dict) -> None:
    backbone = lively(name).at("before")
    model, bridge = cross(make_config(**changes), backbone)
    returned = bridge.from_framework(model.state_dict(), backbone)
    assert returned.spec == backbone.spec
    expected, found = backbone.net.state_dict(), returned.net.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_tensors_that_do_not_fit_are_named(make_config: Make, lively: Lively) -> None:
    backbone = lively("torchvision/resnet18")
    model, bridge = cross(make_config(), backbone)
    tensors, aside = bridge.to_framework(backbone)
    assert not aside
    with torch.no_grad():
        model.backbone.body.backbone.net.layer3[0].conv1.weight[0, 0, 0, 0] += 1e-6
    with pytest.raises(CheckpointError, match=r"1 of 120 tensors .* are not the checkpoint's: .*layer3.0.conv1.weight"):
        assert_same(bridge.select(model.state_dict()), tensors)
    with pytest.raises(CheckpointError, match=r"do not fit the checkpoint's: backbone.body.backbone.net.layer1"):
        bridge.load(model, build_backbone("torchvision/resnet50"))
    state = model.state_dict()
    del state["backbone.body.backbone.net.bn1.bias"]
    with pytest.raises(CheckpointError, match=r"bn1.bias"):
        bridge.from_framework(state, backbone)


def test_a_vit_gets_four_levels_of_its_last_map(make_config: Make, lively: Lively) -> None:
    backbone = lively("timm/vit_tiny_patch16_224")
    model, _ = cross(make_config(), backbone)
    with torch.no_grad():
        levels = model.backbone(torch.randn(1, 3, 96, 160))
    assert [tuple(level.shape[2:]) for level in levels.values()] == [(24, 40), (12, 20), (6, 10), (3, 5), (2, 3)]
    assert pyramid_strides(backbone.spec, make_config()) == (4, 8, 16, 32, 64)


def test_anchors_are_those_of_the_papers(make_config: Make) -> None:
    spec = build_backbone("torchvision/resnet18").spec
    assert anchor_sides(spec, make_config()) == [[32], [64], [128], [256], [512]]
    assert anchor_sides(spec, make_config(neck="c4")) == [[32, 64, 128, 256, 512]]
    retina = anchor_sides(spec, make_config(detector="retinanet"))
    assert [round(sides[0]) for sides in retina] == [32, 64, 128, 256, 512]
    assert retina[0][1:] == [32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "cifar/resnet20",
            {"detector": "retinanet"},
            "takes maps of stride 8 and more, the coarsest of cifar/resnet20 is 4",
        ),
        ("torchvision/mobilenet_v2", {"neck": "c4"}, "--neck c4 needs the four stages of a ResNet"),
        ("timm/vit_tiny_patch16_224", {"detector": "retinanet"}, "retinanet takes maps of several strides"),
        ("timm/vit_tiny_patch16_224", {"fpn_norm": "gn"}, "a net of one stride, has layer norms: leave --fpn-norm out"),
        ("torchvision/resnet18", {"neck": "c4", "detector": "mask-rcnn"}, "takes a pyramid under torchvision"),
    ],
)
def test_a_net_that_the_detector_cannot_take_is_refused(
    make_config: Make, name: str, changes: dict, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        build_detector(make_config(**changes), build_backbone(name), 2)


def test_frozen_norms_stay_in_evaluation_mode(make_config: Make, lively: Lively) -> None:
    model, _ = cross(make_config(norm="frozen"), lively("torchvision/resnet18"))
    norms = [m for m in model.train().modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20 and not any(norm.training for norm in norms)
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())
    assert model.roi_heads.training


def test_pixels_are_normalised_as_the_checkpoint_says(make_config: Make) -> None:
    backbone = build_backbone("torchvision/resnet18")
    odd = replace(backbone.spec.input, mean=(10.0, 20.0, 30.0), std=(2.0, 3.0, 4.0), value_range=(-5.0, 250.0))
    backbone.spec = replace(backbone.spec, input=odd)
    model, _ = build_detector(make_config(), backbone, 2)
    pixels = torch.rand(3, 48, 64)
    assert isinstance(image_arguments(backbone.spec, make_config())["min_size"], tuple)
    found = model.transform.normalize(pixels)
    assert torch.allclose(found, Normalize(odd)(pixels[None])[0], rtol=1e-5, atol=1e-4)
