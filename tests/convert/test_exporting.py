"""Checkpoints in the formats of other projects."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from tests.convert.conftest import build_library_net, trained, write_pth
from torch import Tensor, nn

from stillroom.backbone import CheckpointError, Licence, build_backbone, save_checkpoint, verify_checkpoint
from stillroom.convert.exporting import export_file
from stillroom.convert.importing import import_file

Images = Callable[[int], Tensor]


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A checkpoint of a torchvision MobileNet-V3 with 7 classes, and the net it came from."""
    net = trained(torchvision.models.mobilenet_v3_small(num_classes=7))
    file = write_pth(tmp_path / "in.pth", net.state_dict())
    licence = Licence(spdx="BSD-3-Clause")
    import_file(file, tmp_path / "a", source="torchvision", backbone="torchvision/mobilenet_v3_small", licence=licence)
    return tmp_path / "a", net


def test_an_export_as_pth_holds_plain_tensors(small: tuple[Path, nn.Module], tmp_path: Path) -> None:
    checkpoint, net = small
    export_file(checkpoint, tmp_path / "out.pth", target="torchvision")
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in net.state_dict().items())


def test_input_licence_and_provenance_stand_beside_an_export(small: tuple[Path, nn.Module], tmp_path: Path) -> None:
    checkpoint, _ = small
    export_file(checkpoint, tmp_path / "out.safetensors", target="torchvision")
    record = json.loads((tmp_path / "out.safetensors.json").read_text())
    manifest = verify_checkpoint(checkpoint)
    assert record["net"] == "torchvision/mobilenet_v3_small"
    assert record["input"]["mean"] == [0.485, 0.456, 0.406]
    assert record["licence"] == {"spdx": "BSD-3-Clause", "restrictions": []}
    assert record["weights_sha256"] == manifest.weights.sha256
    assert record["made_by"]["date"] == manifest.made_by.date


@pytest.mark.parametrize(
    "short",
    [
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        pytest.param("resnet152", marks=pytest.mark.slow),
        "resnext50_32x4d",
        "wide_resnet50_2",
    ],
)
def test_a_resnet_has_the_same_keys_in_torchvision_and_timm(short: str) -> None:
    with torch.device("meta"):
        nets = [build_library_net(f"{library}/{short}") for library in ("torchvision", "timm")]
    first, second = ({key: tensor.shape for key, tensor in net.state_dict().items()} for net in nets)
    assert first == second


@pytest.mark.parametrize(
    ("source", "target", "short"),
    [
        ("torchvision", "timm", "resnet18"),
        ("timm", "torchvision", "resnet18"),
        pytest.param("torchvision", "timm", "resnet50", marks=pytest.mark.slow),
    ],
)
def test_a_resnet_crosses_between_torchvision_and_timm_to_the_bit(
    tmp_path: Path, images: Images, short: str, source: str, target: str
) -> None:
    net = trained(build_library_net(f"{source}/{short}", num_classes=3))
    file = write_pth(tmp_path / "in.pth", net.state_dict())
    import_file(file, tmp_path / "a", source=source, backbone=f"{source}/{short}")
    export_file(tmp_path / "a", tmp_path / "out.safetensors", target=target)
    other = build_library_net(f"{target}/{short}", num_classes=3).eval()
    other.load_state_dict(load_file(tmp_path / "out.safetensors"), strict=True)
    assert torch.equal(other(images(64)), net(images(64)))
    record = json.loads((tmp_path / "out.safetensors.json").read_text())
    assert record["net"] == f"{target}/{short}"
    back = import_file(tmp_path / "out.safetensors", tmp_path / "b", source=target, backbone=f"{target}/{short}")
    assert back.weights == verify_checkpoint(tmp_path / "a").weights


@pytest.mark.parametrize(
    ("name", "arguments", "target"),
    [
        ("cifar/resnet20", {}, "torchvision"),
        ("cifar/resnet20", {}, "timm"),
        ("torchvision/mobilenet_v3_small", {}, "timm"),
        ("timm/mobilenetv2_050", {}, "torchvision"),
        ("timm/resnet18", {"stem_type": "deep", "stem_width": 32}, "torchvision"),
    ],
)
def test_a_net_without_a_counterpart_is_not_exported(
    tmp_path: Path, name: str, arguments: dict[str, Any], target: str
) -> None:
    save_checkpoint(
        tmp_path / "a", build_backbone(name, arguments=arguments), method="kdep", package="stillroom-distill"
    )
    with pytest.raises(CheckpointError, match=rf"{name} .*has no counterpart with the same layers in {target}"):
        export_file(tmp_path / "a", tmp_path / "out.pth", target=target)
    assert not (tmp_path / "out.pth").exists()


def test_an_export_does_not_replace_what_exists(small: tuple[Path, nn.Module], tmp_path: Path) -> None:
    (tmp_path / "out.pth").write_text("mine")
    with pytest.raises(CheckpointError, match=r"out\.pth exists: choose another --out"):
        export_file(small[0], tmp_path / "out.pth", target="torchvision")
    assert (tmp_path / "out.pth").read_text() == "mine"


def test_an_unknown_suffix_is_refused(small: tuple[Path, nn.Module], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"out\.bin: pass a name that ends in \.safetensors or \.pth"):
        export_file(small[0], tmp_path / "out.bin", target="torchvision")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("licence", "why"),
    [
        (Licence(), "licence NOASSERTION"),
        (Licence(spdx="CC-BY-NC-4.0"), "licence CC-BY-NC-4.0"),
        (Licence(spdx="MIT", restrictions=("data: ImageNet terms", "weights: x")), "data: ImageNet terms; weights: x"),
    ],
)
def test_a_restricted_licence_is_refused_where_a_permissive_one_is_required(
    tmp_path: Path, licence: Licence, why: str
) -> None:
    state = torchvision.models.mobilenet_v3_small().state_dict()
    file = write_pth(tmp_path / "in.pth", state)
    name = "torchvision/mobilenet_v3_small"
    import_file(file, tmp_path / "a", source="torchvision", backbone=name, licence=licence)
    with pytest.raises(CheckpointError, match=rf"a is not under a permissive licence \({why}\): not exported"):
        export_file(tmp_path / "a", tmp_path / "out.pth", target="torchvision", require_permissive=True)
    assert not (tmp_path / "out.pth").exists()
    export_file(tmp_path / "a", tmp_path / "out.pth", target="torchvision")


def test_a_permissive_licence_is_exported_where_one_is_required(small: tuple[Path, nn.Module], tmp_path: Path) -> None:
    export_file(small[0], tmp_path / "out.pth", target="torchvision", require_permissive=True)
    assert (tmp_path / "out.pth").exists()
