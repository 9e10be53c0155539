"""A student in MMSegmentation's and Detectron2's own nets: each file is loaded by the library itself."""

import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.backbone import Backbone, CheckpointError, Normalize, build_backbone, save_checkpoint
from stillroom.backbone.heads import CLASSIFIER
from stillroom.backbone.manifest import Head
from stillroom.convert.exporting import export_file

Command = Callable[..., tuple[int, str, str]]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def save_lively(out: Path, name: str, **arguments: Any) -> Backbone:
    """A checkpoint whose batch norms are not at 0 and 1, with an input of its own."""
    torch.manual_seed(0)
    backbone = build_backbone(name, arguments=arguments, feature="before").eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    backbone.spec = replace(backbone.spec, input=replace(backbone.spec.input, mean=MEAN, std=STD))
    save_checkpoint(out, backbone, method="kdep", package="stillroom-distill")
    return backbone


def maps_of(backbone: Backbone, side: int = 64) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Images, and the maps of our net for them."""
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, backbone(images).maps


@pytest.fixture
def mmseg() -> Any:
    """MMSegmentation, imported without its warnings, and MMEngine's scope set to it."""
    pytest.importorskip("mmseg", reason="MMSegmentation is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mmseg.models
    from mmengine.registry import init_default_scope

    init_default_scope("mmseg")
    return mmseg


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("torchvision/resnet18", "ResNet"),
        pytest.param("timm/resnet50", "ResNet", marks=pytest.mark.slow),
        pytest.param("timm/resnet50c", "ResNetV1c", marks=pytest.mark.slow),
        ("torchvision/mobilenet_v2", "MobileNetV2"),
        ("timm/mobilenetv2_100", "MobileNetV2"),
    ],
)
def test_mmsegmentations_net_of_the_written_config_gives_our_maps(
    mmseg: Any, tmp_path: Path, name: str, type_: str
) -> None:
    from mmengine.config import Config

    backbone = save_lively(tmp_path / "student", name)
    export_file(tmp_path / "student", tmp_path / "body.pth", target="mmsegmentation")
    config = Config.fromfile(tmp_path / "body.py").model
    assert config.backbone.type == type_ and config.backbone.norm_cfg.type == "BN"
    net = mmseg.registry.MODELS.build(config.backbone)
    net.init_weights()
    net.eval()  # MMSegmentation's returns None
    images, ours = maps_of(backbone)
    with torch.no_grad():
        theirs = net(images)
    assert len(ours) == len(theirs) == 4
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_mmsegmentations_preprocessor_feeds_what_the_checkpoint_expects(mmseg: Any, tmp_path: Path, order: str) -> None:
    from mmengine.config import Config

    backbone = save_lively(tmp_path / "first", "torchvision/resnet18")
    backbone.spec = replace(backbone.spec, input=replace(backbone.spec.input, channel_order=order))
    save_checkpoint(tmp_path / "student", backbone, method="kdep", package="stillroom-distill")
    export_file(tmp_path / "student", tmp_path / "body.pth", target="mmsegmentation")
    preprocessor = mmseg.registry.MODELS.build(Config.fromfile(tmp_path / "body.py").model.data_preprocessor)
    rgb = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    theirs = preprocessor({"inputs": [rgb[0].flip(0)]})["inputs"]  # MMCV reads BGR
    torch.testing.assert_close(theirs, Normalize(backbone.spec.input)(rgb), rtol=1e-5, atol=1e-5)


def test_the_lines_go_into_a_standard_config_of_mmsegmentation(mmseg: Any, tmp_path: Path) -> None:
    """Its PSPNet of a ResNetV1c-50 becomes one of our ResNet-18; only the heads' in_channels are the user's."""
    from mmengine.config import Config

    backbone = save_lively(tmp_path / "student", "torchvision/resnet18")
    export_file(tmp_path / "student", tmp_path / "body.pth", target="mmsegmentation")
    standard = Path(mmseg.__file__).parent / ".mim" / "configs" / "_base_" / "models" / "pspnet_r50-d8.py"
    config = Config.fromfile(standard)
    config.merge_from_dict(Config.fromfile(tmp_path / "body.py").to_dict())
    norm = {"type": "BN"}
    config.model.decode_head.update(in_channels=512, channels=8, norm_cfg=norm)
    config.model.auxiliary_head.update(in_channels=256, channels=8, norm_cfg=norm)
    model = mmseg.registry.MODELS.build(config.model)
    model.init_weights()
    state = model.backbone.state_dict()
    assert state.keys() == backbone.net.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in backbone.net.state_dict().items())
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx([255 * value for value in MEAN])


@pytest.mark.detectron2
@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet50"])
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_detectron2s_net_of_the_written_config_gives_our_maps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, norm: str
) -> None:
    pytest.importorskip("detectron2")
    from detectron2 import model_zoo
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    backbone = save_lively(tmp_path / "student", name)
    export_file(tmp_path / "student", tmp_path / "body.pth", target="detectron2")
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    cfg.merge_from_file(str(tmp_path / "body.yaml"))
    assert cfg.MODEL.RESNETS.NORM == "FrozenBN" and not cfg.MODEL.RESNETS.STRIDE_IN_1X1
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.DEVICE = norm, "cpu"
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8, 8
    model = build_model(cfg).eval()
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    assert "not used by the model" not in caplog.text, "every tensor of the file has found its place"
    images, ours = maps_of(backbone)
    with torch.no_grad():
        theirs = model.backbone.bottom_up(images)
    assert list(theirs) == ["res2", "res3", "res4", "res5"]
    for a, b in zip(ours, theirs.values(), strict=True):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()
    rgb = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert cfg.INPUT.FORMAT == "RGB"
    pixels = torch.from_numpy(rgb.transpose(2, 0, 1).copy())
    fed = model.preprocess_image([{"image": pixels}]).tensor
    torch.testing.assert_close(fed, Normalize(backbone.spec.input)(pixels[None]), rtol=1e-5, atol=1e-5)


def test_what_a_framework_has_no_place_for_is_named_and_recorded(checkpoint_command: Command, tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = nn.Linear(1280, 2)
    save_checkpoint(
        tmp_path / "student",
        build_backbone("torchvision/mobilenet_v2"),
        method="kdep",
        package="stillroom-distill",
        heads={CLASSIFIER: (Head(kind="linear", in_dim=1280, out_dim=2), head.state_dict())},
    )
    words = ["export", tmp_path / "student", "--to", "mmsegmentation", "--out", tmp_path / "body.pth"]
    code, out, err = checkpoint_command(*words)
    assert (code, out) == (0, f"{tmp_path / 'body.pth'}\n")
    first, second = err.splitlines()
    assert first.startswith(
        "note: mmsegmentation's net has no place for 6 tensors: features.18.0.weight, features.18.1"
    )
    assert second == "note: mmsegmentation files hold no classifier: it stays in the checkpoint"
    record = json.loads((tmp_path / "body.pth.json").read_text())
    assert [f"note: {sentence}" for sentence in record["left_out"]] == [first, second]
    assert not any(key.startswith("features.18") for key in torch.load(tmp_path / "body.pth", weights_only=True))


def test_detectron2_finds_the_names_inside_those_of_a_detector_and_gets_no_batch_counters(tmp_path: Path) -> None:
    backbone = save_lively(tmp_path / "student", "torchvision/resnet18")
    (note,) = export_file(tmp_path / "student", tmp_path / "body.pth", target="detectron2")
    content = torch.load(tmp_path / "body.pth", weights_only=True)
    assert content["matching_heuristics"] is True
    assert torch.equal(content["model"]["res2.0.conv1.norm.bias"], backbone.net.state_dict()["layer1.0.bn1.bias"])
    assert torch.equal(content["model"]["res3.0.shortcut.weight"], backbone.net.layer2[0].downsample[0].weight)
    assert not any("num_batches" in key for key in content["model"])
    assert note.startswith("detectron2's net has no place for 20 tensors: bn1.num_batches_tracked, ")


@pytest.mark.parametrize(
    ("name", "arguments", "target", "words"),
    [
        ("cifar/resnet20", {}, "mmsegmentation", "stillroom-seg-transfer trains other nets there"),
        ("timm/vit_tiny_patch16_224", {"depth": 1}, "mmsegmentation", "ResNet-18 to ResNet-152, timm/resnet50c and"),
        ("torchvision/mobilenet_v2", {"width_mult": 0.25}, "mmsegmentation", "as built without arguments"),
        ("torchvision/mobilenet_v2", {}, "detectron2", "stillroom-det-transfer trains other nets there"),
        ("timm/resnet18", {"output_stride": 8}, "detectron2", "as built without arguments"),
    ],
)
def test_a_net_that_the_framework_does_not_have_is_refused(
    tmp_path: Path, name: str, arguments: dict[str, Any], target: Any, words: str
) -> None:
    save_lively(tmp_path / "student", name, **arguments)
    with pytest.raises(
        CheckpointError, match=rf"^{name}.* has no counterpart with the same layers in {target}: .*{words}"
    ):
        export_file(tmp_path / "student", tmp_path / "body.pth", target=target)
    assert not list(tmp_path.glob("body*"))


def test_a_framework_gets_pth_and_no_config_is_replaced(student: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"body\.safetensors: detectron2 reads \.pth: pass a name that ends in"):
        export_file(student, tmp_path / "body.safetensors", target="detectron2")
    (tmp_path / "body.py").write_text("mine = 1\n")
    with pytest.raises(CheckpointError, match=r"body\.py, the config beside the weights, exists: choose another --out"):
        export_file(student, tmp_path / "body.pth", target="mmsegmentation")
    assert (tmp_path / "body.py").read_text() == "mine = 1\n" and not (tmp_path / "body.pth").exists()
