"""Folders in timm's hub layout, loaded and fed before they count as written."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from stillroom.backbone import Backbone, build_backbone, load_checkpoint, replace_input, save_checkpoint
from stillroom.backbone.manifest import CheckpointError
from stillroom.convert.exporting import export_file
from stillroom.convert.hub import write_hub_directory


def save_student(out: Path, name: str, size: int, **arguments: Any) -> Backbone:
    """A checkpoint that states this size."""
    torch.manual_seed(0)
    backbone = replace_input(build_backbone(name, arguments=arguments), size=size).eval()
    save_checkpoint(out, backbone, method="kdep", package="stillroom-distill")
    return backbone


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("timm/vit_tiny_patch16_224", 96, {"depth": 2}),
        ("timm/vit_tiny_patch16_224", 64, {"depth": 2, "img_size": 64}),
        ("timm/vit_tiny_patch16_224", 96, {"depth": 2, "img_size": 64, "global_pool": "avg"}),
        ("timm/convnext_atto", 40, {"depths": [1, 1, 1, 1]}),
        ("timm/mobilenetv3_small_050", 64, {}),
        ("torchvision/resnet18", 96, {}),
    ],
)
def test_a_folder_loads_in_timm_at_the_size_that_it_states(
    tmp_path: Path, name: str, size: int, arguments: dict[str, Any]
) -> None:
    backbone = save_student(tmp_path / "student", name, size, **arguments)
    export_file(tmp_path / "student", tmp_path / "hub", target="huggingface")
    net = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    stated = timm.data.resolve_model_data_config(net)["input_size"]
    assert list(stated) == [3, size, size]
    images = torch.randn(2, *stated)
    with torch.no_grad():
        expected = backbone.at("after")(images).pooled
        assert (net(images) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_record_of_a_timm_file_holds_the_arguments_for_the_size_that_it_states(tmp_path: Path) -> None:
    save_student(tmp_path / "student", "timm/vit_tiny_patch16_224", 96, depth=1)
    export_file(tmp_path / "student", tmp_path / "vit.safetensors", target="timm")
    record = json.loads((tmp_path / "vit.safetensors.json").read_text())
    net = timm.create_model(record["net"].removeprefix("timm/"), **record["arguments"], num_classes=0).eval()
    net.load_state_dict(load_file(tmp_path / "vit.safetensors"))
    with torch.no_grad():
        assert net(torch.zeros(1, 3, record["input"]["size"], record["input"]["size"])).shape == (1, 192)


@pytest.mark.parametrize("target", ["huggingface", "onnx"])
def test_a_size_that_the_net_does_not_take_is_refused_and_nothing_is_written(tmp_path: Path, target: Any) -> None:
    save_student(tmp_path / "student", "timm/vit_tiny_patch16_224", 100, depth=1)
    with pytest.raises(ValueError, match=r"takes no images of 100 x 100 px \(.*\): the checkpoint states a size that"):
        export_file(tmp_path / "student", tmp_path / "hub", target=target)
    assert not list(tmp_path.glob("*hub*"))


def test_a_folder_that_timm_does_not_load_or_that_differs_is_not_written(tmp_path: Path) -> None:
    save_student(tmp_path / "student", "timm/vit_tiny_patch16_224", 32, depth=1)
    backbone, _ = load_checkpoint(tmp_path / "student")
    tensors = backbone.net.state_dict()
    for changes, words in (
        ({"norm.weight": torch.ones(3)}, r"timm cannot load and feed timm/vit_tiny_patch16_224 at 32 px: "),
        ({"norm.bias": tensors["norm.bias"] + 1}, r"timm/vit_tiny_patch16_224 loaded by timm differs by .*: not writ"),
    ):
        with pytest.raises(CheckpointError, match=words):
            write_hub_directory(tmp_path / "hub", "timm/vit_tiny_patch16_224", backbone, tensors | changes, 0)
        assert not list(tmp_path.glob("*hub*"))
