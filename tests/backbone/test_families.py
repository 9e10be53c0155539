"""Every family against the library's own, untouched net with the same weights: nothing is lost by opening it up."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from tests.backbone.conftest import Family
from torch import Tensor, nn

from stillroom.backbone import Backbone, Level, build_backbone

Images = Callable[[int], Tensor]


def heard(module: nn.Module, net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What last entered and left `module` while `net` saw `images`; copies, as activations may overwrite."""
    calls: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].clone())),
        module.register_forward_hook(lambda _, inputs, output: calls.append(output.clone())),
    ]
    try:
        net(images)
    finally:
        for hook in hooks:
            hook.remove()
    return calls[-2], calls[-1]


def library_map(net: nn.Module, level: Level, images: Tensor, is_last: bool) -> Tensor:
    """A level of the library's own net, channels first; transformers' tokens pass the closing norm as well."""
    output = heard(net.get_submodule(level.name), net, images)[1]
    if output.ndim == 3:  # ViT: (b, prefix + h * w, c)
        side = math.isqrt(output.shape[1] - net.num_prefix_tokens)
        tokens = net.norm(output)[:, net.num_prefix_tokens :]
        return tokens.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if output.shape[1] != level.channels:  # Swin: (b, h, w, c)
        return (net.norm(output) if is_last else output).permute(0, 3, 1, 2)
    return output


def test_shapes_are_those_of_the_spec_at_two_input_sizes(family: Family, opened: Backbone, images: Images) -> None:
    for size in family.sizes:
        features = opened(images(size))
        assert features.pooled.shape == (3, opened.spec.dim)
        sides = [math.ceil(size / level.stride) for level in opened.spec.levels]
        expected = [(3, level.channels, side, side) for level, side in zip(opened.spec.levels, sides, strict=True)]
        assert [tuple(level.shape) for level in features.maps] == expected


def test_strides_are_4_8_16_32_where_the_family_has_them(family: Family, opened: Backbone) -> None:
    strides = tuple(level.stride for level in opened.spec.levels)
    if "vit_" in family.name:
        assert strides == (16, 16, 16, 16)
    elif family.name.startswith("cifar/"):
        assert strides == (1, 2, 4)
    else:
        assert strides == (4, 8, 16, 32)


def test_levels_are_known_without_a_forward_pass(family: Family, opened: Backbone) -> None:
    def refuse(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise AssertionError(f"{type(module).__name__} was run while the net was built")

    hook = nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        built = build_backbone(family.name, arguments=family.arguments)
    finally:
        hook.remove()
    assert built.spec == opened.spec


def test_pooled_after_is_what_enters_the_librarys_classifier(
    family: Family, opened: Backbone, library_net: nn.Module, images: Images
) -> None:
    for size in family.sizes:
        entered, _ = heard(library_net.get_submodule(family.classifier), library_net, images(size))
        assert torch.equal(opened.at("after")(images(size)).pooled, entered)


def test_pooled_after_of_timm_is_its_own_pre_logits_output(
    family: Family, opened: Backbone, library_net: nn.Module, images: Images
) -> None:
    if not family.name.startswith("timm/"):
        return  # said by the test above
    pixels = images(family.sizes[0])
    own = library_net.forward_head(library_net.forward_features(pixels), pre_logits=True)
    assert torch.equal(opened.at("after")(pixels).pooled, own)


def test_pooled_before_is_what_enters_the_librarys_last_activation(
    family: Family, opened: Backbone, library_net: nn.Module, images: Images
) -> None:
    pixels = images(family.sizes[0])
    before = opened.at("before")(pixels).pooled
    if family.last_activation is None:
        assert torch.equal(before, opened.at("after")(pixels).pooled)
        return
    entered, left = heard(library_net.get_submodule(family.last_activation), library_net, pixels)
    assert entered.min() < left.min()  # so the two feature points differ
    assert torch.equal(before, nn.functional.adaptive_avg_pool2d(entered, 1).flatten(1))


def test_maps_are_the_librarys_own_at_both_feature_points(
    family: Family, opened: Backbone, library_net: nn.Module, images: Images
) -> None:
    pixels = images(family.sizes[0])
    levels = opened.spec.levels
    expected = [library_map(library_net, level, pixels, is_last=level == levels[-1]) for level in levels]
    for backbone in (opened.at("before"), opened.at("after")):
        for level, own, ours in zip(levels, expected, backbone(pixels).maps, strict=True):
            assert torch.equal(ours, own), level
            if family.ends_in_a_map:
                assert ours.min() >= 0, level


def test_a_net_that_ends_in_a_map_pools_its_last_level(family: Family, opened: Backbone, images: Images) -> None:
    if family.last_activation is None:
        return  # a closing norm stands between the levels and the pooled feature, or in both
    features = opened.at("after")(images(family.sizes[0]))
    last = features.maps[-1].mean(dim=(2, 3))
    assert (last.shape == features.pooled.shape and torch.equal(last, features.pooled)) == family.ends_in_a_map


def test_state_dict_keys_and_shapes_are_the_librarys_without_the_classifier(
    family: Family, opened: Backbone, library_net: nn.Module
) -> None:
    theirs = {key: tensor.shape for key, tensor in library_net.state_dict().items()}
    kept = {key: shape for key, shape in theirs.items() if not key.startswith(f"{family.classifier}.")}
    assert {key: tensor.shape for key, tensor in opened.net.state_dict().items()} == kept
    assert len(kept) < len(theirs)


def test_gradients_reach_every_parameter_from_both_feature_points(
    family: Family, opened: Backbone, images: Images
) -> None:
    trained = copy.deepcopy(opened).requires_grad_().train()
    for feature in ("before", "after"):
        trained.zero_grad()
        trained.at(feature)(images(family.sizes[0])).pooled.square().sum().backward()
        assert [name for name, p in trained.net.named_parameters() if p.grad is None] == []


def test_a_dilated_resnet_states_the_strides_it_has() -> None:
    arguments = {"replace_stride_with_dilation": [False, True, True], "width_per_group": 8}
    backbone = build_backbone("torchvision/resnet50", arguments=arguments).eval()
    assert [level.stride for level in backbone.spec.levels] == [4, 8, 8, 8]
    assert [m.shape[-1] for m in backbone(torch.zeros(1, 3, 64, 64)).maps] == [16, 8, 8, 8]
    timms = build_backbone("timm/resnet26", arguments={"output_stride": 16, "base_width": 8})
    assert [level.stride for level in timms.spec.levels] == [4, 8, 16, 16]


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_a_cifar_resnet_has_6n_plus_2_layers(depth: int) -> None:
    weights = [p for p in build_backbone(f"cifar/resnet{depth}").net.parameters() if p.ndim == 4]
    assert len(weights) == depth - 1  # the classifier is the other one


@pytest.mark.parametrize("name", ["timm/regnetv_040", "timm/regnetz_005"])
def test_a_regnet_with_a_final_convolution_is_refused(name: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=f"{name} has a final convolution.*from_module"):
        build_backbone(name)


@pytest.mark.parametrize("name", ["timm/mobilenetv1_100", "timm/test_efficientnet_evos"])
def test_an_efficientnet_without_a_plain_last_activation_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no separate activation after its last convolution"):
        build_backbone(name)
