"""Backbones into MMSegmentation and back: names, features, dilation."""

import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

from stillroom.backbone import Backbone, BackboneSpec, CheckpointError, build_backbone
from stillroom.convert.bridge import assert_same
from stillroom.seg_transfer.bridge import adopt_bridge, build_bridge
from stillroom.seg_transfer.nets import StillroomMobileNetV2, StillroomResNet, dilate

NATIVE = (
    "torchvision/resnet18",
    "timm/resnet18",
    "torchvision/resnet50",
    "torchvision/mobilenet_v2",
    "timm/mobilenetv2_100",
)


@pytest.fixture(autouse=True)
def scope() -> None:
    """Where MMEngine looks for names."""
    init_default_scope("mmseg")


def lively(name: str, **arguments: object) -> Backbone:
    """A random backbone whose batch norms are not at 0 and 1."""
    torch.manual_seed(0)
    backbone = build_backbone(name, arguments=arguments)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(7)
    return backbone.eval()


def cross(backbone: Backbone, output_stride: int) -> nn.Module:
    """The backbone in MMSegmentation."""
    bridge = build_bridge(backbone.spec, output_stride=output_stride)
    net = MODELS.build(dict(bridge.config)).eval()
    tensors, _ = bridge.to_framework(backbone)
    net.load_state_dict(tensors)
    assert_same(net.state_dict(), tensors)
    return net


@pytest.mark.parametrize(
    "name", [*NATIVE, "timm/resnet50c", "timm/convnext_atto", "timm/vit_tiny_patch16_224", "cifar/resnet20"]
)
def test_every_level_is_equal_to_the_bit_undilated(name: str) -> None:
    backbone = lively(name)
    net = cross(backbone, 32)
    side = 224 if "vit" in name else 64
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        ours, theirs = backbone(images).maps, net(images)
    assert len(ours) == len(theirs) == len(backbone.spec.levels)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["timm/resnet18", "timm/resnet50", "timm/resnet50c", "timm/mobilenetv2_100"])
def test_dilated_levels_are_those_of_timms_net_of_the_same_stride(name: str, output_stride: int) -> None:
    backbone = lively(name)
    net = cross(backbone, output_stride)
    timms = build_backbone(name, arguments={"output_stride": output_stride}).eval()
    timms.net.load_state_dict(backbone.net.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for expected, found in zip(timms(images).maps, net(images), strict=True):
            assert expected.shape == found.shape
            assert (expected - found).abs().max() <= 1e-6 * expected.abs().max()


def test_a_dilated_net_holds_the_strided_nets_values_at_its_positions() -> None:
    backbone = lively("torchvision/mobilenet_v2")
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        strided, dilated = backbone(images).maps[-1], cross(backbone, 8)(images)[-1]
    assert dilated.shape[-1] == 4 * strided.shape[-1]
    torch.testing.assert_close(dilated[..., ::4, ::4], strided, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*NATIVE, "timm/convnext_atto"])
def test_a_trained_backbone_comes_back_equal_to_the_bit(name: str) -> None:
    backbone = lively(name)
    bridge = build_bridge(backbone.spec, output_stride=8)
    net = MODELS.build(dict(bridge.config))
    _, aside = bridge.to_framework(backbone)
    assert len(aside) == (6 if "mobilenet" in name else 0)
    assert all(key.startswith(("features.18.", "conv_head.", "bn2.")) for key in aside)
    returned = bridge.from_framework(net.state_dict(), backbone)
    assert returned.spec == backbone.spec
    again, kept = bridge.to_framework(returned)
    assert again.keys() == net.state_dict().keys() and kept.keys() == aside.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in net.state_dict().items())
    assert all(torch.equal(kept[key], tensor) for key, tensor in aside.items())


def test_a_tensor_that_is_missing_or_differs_is_named() -> None:
    backbone = lively("torchvision/resnet18")
    bridge = build_bridge(backbone.spec)
    net = MODELS.build(dict(bridge.config))
    tensors, _ = bridge.to_framework(backbone)
    with pytest.raises(CheckpointError, match=r"of 120 tensors of the model's backbone are not"):
        assert_same(net.state_dict(), tensors)
    net.load_state_dict(tensors)
    tensors["bn1.bias"] = tensors["bn1.bias"] + 1
    with pytest.raises(CheckpointError, match=r"^1 of 120 tensors .*: bn1.bias$"):
        assert_same(net.state_dict(), tensors)
    with pytest.raises(CheckpointError, match=r"1 missing: bn1.weight"):
        bridge.from_framework({k: t for k, t in net.state_dict().items() if k != "bn1.weight"}, backbone)


def test_a_stride_that_a_shortcut_shares_dilates_what_follows_once() -> None:
    """A residual block's first convolution and its 1x1 shortcut have one stride between them."""
    block = [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(3, 4, 1, stride=2)]
    after = nn.Conv2d(4, 4, 3, padding=1)
    dilate([nn.Sequential(*block, after)], stride=4, output_stride=4)
    assert [one.stride[0] for one in (*block, after)] == [1, 1, 1, 1]
    assert [one.dilation[0] for one in (*block, after)] == [1, 2, 1, 2]
    assert [one.padding[0] for one in (*block, after)] == [1, 2, 0, 2]


def test_kdeps_dilation_touches_second_convolutions_alone() -> None:
    spec = build_backbone("torchvision/resnet18").spec
    net = MODELS.build(dict(build_bridge(spec, output_stride=8, atrous="second").config))
    rates = {name: m.dilation[0] for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    assert {rate for name, rate in rates.items() if name.startswith("layer3") and name.endswith("conv2")} == {2}
    assert {rate for name, rate in rates.items() if name.startswith("layer4") and name.endswith("conv2")} == {4}
    assert {rate for name, rate in rates.items() if name.endswith("conv1")} == {1}
    assert net(torch.randn(1, 3, 64, 64))[-1].shape[-1] == 8


@pytest.mark.parametrize("name", ["torchvision/resnet18", "torchvision/mobilenet_v2", "timm/convnext_atto"])
def test_frozen_weights_stay_in_evaluation_mode_without_gradients(name: str) -> None:
    spec = build_backbone(name).spec
    net = MODELS.build(dict(build_bridge(spec, frozen=True).config)).train()
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    free = MODELS.build(dict(build_bridge(spec).config)).train()
    assert all(module.training for module in free.modules())
    assert all(parameter.requires_grad for parameter in free.parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm/vit_tiny_patch16_224", {"output_stride": 8}, "cannot be dilated to stride 8: pass --output-stride 16"),
        ("torchvision/convnext_tiny", {"output_stride": 8}, "cannot be dilated to stride 8: pass --output-stride 32"),
        ("torchvision/resnet18", {"output_stride": 4}, "--output-stride is 4: 8, 16 or 32 pixels"),
        ("torchvision/resnet50", {"output_stride": 8, "atrous": "second"}, "--atrous second is KDEP's"),
    ],
)
def test_what_cannot_be_dilated_is_refused_in_one_sentence(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_bridge(build_backbone(name).spec, **options)


def test_a_net_without_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="module/Net has no levels: a segmentation head needs feature maps"):
        build_bridge(BackboneSpec(name="module/Net", dim=8))


@pytest.mark.parametrize(
    ("name", "theirs", "message"),
    [
        ("torchvision/resnet18", {"type": "ResNetV1c", "depth": 18}, "ResNetV1c begins with three 3x3 .* take ResNet$"),
        ("timm/resnet50c", {"type": "ResNet", "depth": 50}, "ResNet begins with one 7x7 .* take ResNetV1c$"),
        ("torchvision/resnet50", {"type": "mmseg.ResNet", "depth": 50, "style": "caffe"}, "has style='caffe', torchv"),
        ("timm/resnet50", {"type": "ResNet", "depth": 50, "avg_down": True}, "avg_down=True, timm/resnet50 has"),
        ("timm/convnext_atto", {"type": "ResNet", "depth": 50}, "fits .*'s StillroomBackbone, .* is ResNet$"),
    ],
)
def test_a_config_whose_backbone_does_not_fit_is_refused(name: str, theirs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adopt_bridge(build_backbone(name).spec, theirs)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("timm/resnet18", {"type": "ResNet", "depth": 18}), ("torchvision/mobilenet_v2", {"type": "MobileNetV2"})],
)
def test_a_configs_own_backbone_takes_every_tensor(name: str, theirs: dict) -> None:
    backbone = lively(name)
    tensors, _ = adopt_bridge(backbone.spec, theirs).to_framework(backbone)
    net = MODELS.build(dict(theirs))
    net.load_state_dict(tensors)
    assert_same(net.state_dict(), tensors)
    assert not isinstance(net, StillroomResNet | StillroomMobileNetV2)
