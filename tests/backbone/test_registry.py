"""Nets by name: what is known, what is refused and how, where weights come from."""

import socket
from pathlib import Path
from typing import Any
from urllib.error import URLError

import huggingface_hub.constants
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from tests.backbone.conftest import FAMILIES

from stillroom.backbone import (
    InputSpec,
    Licence,
    build_backbone,
    list_backbones,
    load_backbone,
    replace_input,
    save_checkpoint,
    weights_sha256,
)
from stillroom.backbone.families.timm import published
from stillroom.backbone.names import checkpoint_method, is_checkpoint, refuse_missing_checkpoint


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that would reach for the network fails at once."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_every_family_is_listed() -> None:
    assert FAMILIES.keys() <= set(list_backbones())


def test_a_pattern_filters_the_list() -> None:
    assert list_backbones("cifar/*") == [f"cifar/resnet{depth}" for depth in (20, 32, 44, 56, 110)]
    assert set(list_backbones("timm/vit_tiny*")) >= {"timm/vit_tiny_patch16_224", "timm/vit_tiny_patch16_384"}
    assert list_backbones("detectron2/*") == []


def test_a_wrong_name_is_answered_with_the_closest_ones() -> None:
    with pytest.raises(ValueError, match=r"no backbone named 'torchvison/resnet18', nor a .*: .*torchvision/resnet18"):
        build_backbone("torchvison/resnet18")
    with pytest.raises(ValueError, match=r"named 'timm/resnet19'.* are .*timm/resnet1[08].*Backbone\.from_module"):
        load_backbone("random:timm/resnet19")


@pytest.mark.parametrize("name", ["", "resnet18", "torchvision/", "torchvision/vgg16", "cifar/resnet21", "/no/dir"])
def test_a_name_that_is_not_in_the_list_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"there is no backbone named '{name}', nor a checkpoint directory"):
        load_backbone(name)


def test_a_path_without_a_checkpoint_is_refused_and_what_may_be_a_net_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs", "timm", "student"):
        (tmp_path / folder).mkdir()
    (tmp_path / "student" / "manifest.json").touch()
    for path in ("/none", "./none", "../none", "~/none", "runs/none", "none/of/these"):
        with pytest.raises(ValueError, match=f"there is no backbone named '{path}', nor a checkpoint directory: names"):
            refuse_missing_checkpoint(path)
    for name in ("timm/resnet18", "random:timm/resnet18", "torchvison/resnet18", "random", "./student", "student"):
        refuse_missing_checkpoint(name)


def test_a_name_like_no_other_is_told_what_names_look_like() -> None:
    with pytest.raises(ValueError, match="names look like torchvision/resnet18; wrap a net of your own"):
        build_backbone("xqz")


def test_cifar_nets_have_no_published_weights() -> None:
    with pytest.raises(ValueError, match="cifar/resnet20 has no published weights: pass random:cifar/resnet20 or a"):
        build_backbone("cifar/resnet20", pretrained=True)


def test_a_timm_net_without_published_weights_says_so() -> None:
    with pytest.raises(ValueError, match="timm has no published weights for resnet200: pass random:timm/resnet200"):
        build_backbone("timm/resnet200", pretrained=True)


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_tag_that_timm_does_not_have_is_answered_with_those_it_has(pretrained: bool) -> None:
    with pytest.raises(ValueError, match=r"timm has no weights resnet18\.nonsense; of resnet18 it has .*18\.a1_in1k"):
        build_backbone("timm/resnet18.nonsense", pretrained=pretrained)


@pytest.mark.parametrize("name", ["cifar/resnet20", "torchvision/mobilenet_v3_small", "timm/mobilenetv3_small_050"])
def test_same_seed_gives_same_net_and_another_seed_another(name: str) -> None:
    hashes = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        hashes.append(weights_sha256(build_backbone(name).net))
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_feature_point_is_after_unless_asked() -> None:
    assert build_backbone("timm/mobilenetv2_050").spec.pre_activation is False
    assert build_backbone("timm/mobilenetv2_050", feature="after").spec.pre_activation is False
    assert build_backbone("timm/mobilenetv2_050", feature="before").spec.pre_activation is True


def test_arguments_reach_the_library_and_the_spec() -> None:
    same = {"pad_type": "same"}
    built = build_backbone("timm/mobilenetv2_050", arguments=same)
    assert built.spec.arguments == same
    assert type(built.net.conv_stem).__name__ == "Conv2dSame"


def test_input_and_licence_are_those_the_library_states() -> None:
    old, new = build_backbone("torchvision/resnet18").spec, build_backbone("torchvision/mobilenet_v3_small").spec
    assert old.input == InputSpec()
    assert (new.input.size, new.input.crop_fraction) == (224, 224 / 256)
    assert build_backbone("torchvision/efficientnet_b0").spec.input.interpolation == "bicubic"
    half = build_backbone("timm/vit_tiny_patch16_224", arguments={"depth": 4}).spec.input
    assert (half.mean, half.std, half.crop_fraction, half.interpolation) == ((0.5,) * 3, (0.5,) * 3, 0.9, "bicubic")
    squashed, _ = published("convnext_small.fb_in22k_ft_in1k_384", {})
    assert (squashed.resize, squashed.size, squashed.crop_fraction) == ("squash", 384, 1.0)
    assert old.licence == Licence()  # random weights are nobody's


@pytest.mark.parametrize("side", [64, [64, 64]])
def test_the_input_has_the_size_that_an_argument_builds(side: Any) -> None:
    vit = build_backbone("timm/vit_tiny_patch16_224", arguments={"depth": 4, "img_size": side})
    assert vit.spec.input.size == 64


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("timm/resnet18", {"in_chans": 1}, "timm/resnet18 with in_chans=1 takes no RGB images: every net here takes 3"),
        ("timm/vit_tiny_patch16_224", {"img_size": [64, 32]}, r"img_size=\[64, 32\]: images are square here"),
        ("timm/vit_tiny_patch16_224", {"img_size": "big"}, "cannot be built with the arguments {'img_size': 'big'}"),
        ("torchvision/resnet18", {"norm_layer": "a"}, "torchvision/resnet18 cannot be built with the arguments"),
        (
            "torchvision/resnet18",
            {"in_chans": 1},
            "no constructor argument 'in_chans': those it takes are block, groups,",
        ),
        ("cifar/resnet20", {"in_chans": 1}, "cifar/resnet20 has no constructor argument 'in_chans': it takes none"),
        ("byol/resnet50", {"in_chans": 1}, "byol/resnet50 has no constructor argument 'in_chans': those it takes are"),
    ],
)
def test_an_argument_that_cannot_be_is_one_sentence(name: str, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_backbone(name, arguments=arguments)


@pytest.mark.parametrize("key", ["_target_", "checkpoint_path", "pretrained_cfg", "weights", "kwargs", "features_only"])
@pytest.mark.parametrize(
    "name",
    [
        "cifar/resnet20",
        "simclr/resnet50x4",
        "byol/resnet50",
        "torchvision/mobilenet_v3_small",
        "torchvision/convnext_tiny",
        "torchvision/regnet_y_400mf",
        "timm/regnety_002",
        "timm/vit_tiny_patch16_224.augreg_in21k",
        "timm/efficientnet_b0",
    ],
)
def test_an_argument_that_a_net_does_not_name_is_never_passed_on(name: str, key: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no constructor argument '{key}'"):
        build_backbone(name, arguments={key: "x.pth"})


def test_arguments_of_a_library_that_no_class_names_are_taken() -> None:
    half = build_backbone("torchvision/mobilenet_v3_small", arguments={"width_mult": 0.5, "dilated": True})
    assert half.spec.dim < build_backbone("torchvision/mobilenet_v3_small").spec.dim
    eps = build_backbone("timm/mobilenetv3_small_050", arguments={"bn_eps": 0.25}).net.bn1.eps
    assert eps == 0.25


@pytest.mark.parametrize(
    ("name", "licence", "permissive"),
    [
        ("mobilenetv2_050.lamb_in1k", Licence(spdx="Apache-2.0"), True),
        ("convnextv2_atto.fcmae", Licence(spdx="CC-BY-NC-4.0"), False),
        ("vit_small_patch16_dinov3.lvd1689m", Licence(restrictions=("weights: dinov3-license",)), False),
    ],
)
def test_timms_licences_are_spdx_names_or_restrictions(name: str, licence: Licence, permissive: bool) -> None:
    stated = published(name, {})[1]
    assert (stated, stated.permissive) == (licence, permissive)


def keep_in_hub_cache(cache: Path, name: str) -> dict[str, torch.Tensor]:
    """Put a file of random weights where the Hugging Face hub keeps the one of timm's `name`."""
    state = timm.create_model(name).state_dict()
    repository = cache / f"models--{timm.get_pretrained_cfg(name).hf_hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(state, snapshot / "model.safetensors")
    return state


def test_weights_of_timm_are_read_from_the_hubs_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    state = keep_in_hub_cache(tmp_path, "mobilenetv3_small_050.lamb_in1k")
    backbone = load_backbone("timm/mobilenetv3_small_050.lamb_in1k")
    assert backbone.spec.licence == Licence(spdx="Apache-2.0")
    loaded = backbone.net.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in loaded)
    assert state.keys() - loaded.keys() == {"classifier.weight", "classifier.bias"}


def test_weights_of_torchvision_are_read_from_torchs_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = torchvision.models.mobilenet_v3_small().state_dict()
    url = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / Path(url).name)
    loaded = load_backbone("torchvision/mobilenet_v3_small")
    assert loaded.spec.licence == Licence(spdx="BSD-3-Clause")
    for key, tensor in loaded.net.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_torchvision_weights_that_cannot_be_downloaded_say_where_the_file_is_searched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*args: object, **kwargs: object) -> None:
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    sentence = (
        rf"weights of torchvision/resnet18 cannot be downloaded \(URLError\): they are searched in {tmp_path}/hub/"
        r"checkpoints .*put the file there.*stillroom-checkpoint import.*or pass random:torchvision/resnet18"
    )
    with pytest.raises(ValueError, match=sentence):
        build_backbone("torchvision/resnet18", pretrained=True)


def test_timm_weights_that_cannot_be_downloaded_say_where_the_file_is_searched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    sentence = rf"weights of timm/mobilenetv2_050 cannot be downloaded \(\w+\): .* and {tmp_path} \(timm\)"
    with pytest.raises(ValueError, match=sentence):
        load_backbone("timm/mobilenetv2_050")


def test_load_backbone_takes_a_checkpoint_directory(tmp_path: Path) -> None:
    saved = build_backbone("cifar/resnet20", feature="before")
    save_checkpoint(tmp_path / "student", saved, method="kdep", package="stillroom-distill")
    loaded = load_backbone(str(tmp_path / "student"))
    assert loaded.spec == saved.spec and loaded.spec.pre_activation
    assert torch.equal(loaded.net.conv1.weight, saved.net.conv1.weight)
    assert load_backbone(str(tmp_path / "student"), feature="after").spec.pre_activation is False


def test_the_method_of_an_initialisation_is_the_checkpoints_random_or_pretrained(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "s", build_backbone("cifar/resnet20"), method="kdep", package="stillroom-distill")
    assert is_checkpoint(str(tmp_path / "s")) and not is_checkpoint(str(tmp_path))
    assert checkpoint_method(str(tmp_path / "s")) == "kdep"
    assert checkpoint_method("random:cifar/resnet20") == "random"
    assert checkpoint_method("timm/resnet18") == "pretrained"


def test_replace_input_changes_what_is_given_and_keeps_the_rest() -> None:
    backbone = build_backbone("timm/mobilenetv2_050")
    before = backbone.spec.input
    twin = replace_input(backbone, size=96, crop_fraction=None)
    changed = twin.spec.input
    assert backbone.spec.input == before and twin.net is backbone.net
    assert (changed.size, changed.crop_fraction, changed.mean) == (96, before.crop_fraction, before.mean)


def test_replace_input_is_checked() -> None:
    with pytest.raises(ValueError, match="input size is 0 px: it must be at least 1"):
        replace_input(build_backbone("cifar/resnet20"), size=0)


def test_an_error_of_the_system_is_called_a_failed_download_only_for_pretrained_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torchvision.models, "get_model", refuse)
    with pytest.raises(PermissionError):
        build_backbone("torchvision/resnet18")
    with pytest.raises(ValueError, match=r"resnet18 cannot be downloaded \(PermissionError\)"):
        build_backbone("torchvision/resnet18", pretrained=True)
