"""Files of self-supervised training: made with the key names they have, in and out to the bit."""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from stillroom.backbone import (
    Backbone,
    BackboneSpec,
    CheckpointError,
    InputSpec,
    load_backbone,
    load_checkpoint,
    load_heads,
    save_checkpoint,
)
from stillroom.backbone.families import simclr
from stillroom.backbone.heads import build_head
from stillroom.convert.exporting import export_file
from stillroom.convert.importing import import_file
from stillroom.convert.onnx import write_onnx

State = dict[str, Tensor]
R18 = "torchvision/resnet18"


def resnet(fc: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    net = torchvision.models.resnet18()
    net.fc = fc or nn.Identity()
    for name, tensor in net.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.uniform_(-0.3, 0.3)
    return net.eval()


def prefixed(prefix: str, module: nn.Module) -> State:
    return {f"{prefix}{key}": tensor for key, tensor in module.state_dict().items()}


def mlp(*widths: int, norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers[: -2 if norm else -1]).eval()


def simreg_head() -> nn.Sequential:
    wide = [nn.Linear(512, 1024), nn.BatchNorm1d(1024), nn.ReLU()]
    wider = [nn.Linear(512, 1024), nn.BatchNorm1d(1024), nn.ReLU()]
    return nn.Sequential(*wide, nn.Linear(1024, 512), *wider, nn.Linear(1024, 2048)).eval()


def moco(fc: nn.Module) -> dict[str, Any]:
    net = resnet(fc)
    queue = {"module.queue": torch.zeros(128, 8), "module.queue_ptr": torch.zeros(1)}
    return {
        "epoch": 200,
        "arch": "resnet18",
        "state_dict": prefixed("module.encoder_q.", net) | prefixed("module.encoder_k.", net) | queue,
    }


CASES = {
    "moco-v2": ("moco", lambda: moco(mlp(512, 512, 128)), mlp(512, 512, 128), "linear-relu-linear"),
    "moco-v1": ("moco", lambda: moco(nn.Linear(512, 128)), nn.Linear(512, 128), "linear"),
    "simreg": (
        "simreg",
        lambda: {
            "model": prefixed("encoder_q.module.", resnet())
            | prefixed("predict_q.module.", simreg_head())
            | prefixed("encoder_t.module.", resnet())
        },
        simreg_head(),
        "linear-batchnorm-relu-linear-linear-batchnorm-relu-linear",
    ),
    "swav": (
        "swav",
        lambda: (
            prefixed("module.", resnet())
            | prefixed("module.projection_head.", mlp(512, 2048, 128, norm=True))
            | {"module.prototypes.weight": torch.zeros(3000, 128)}
        ),
        mlp(512, 2048, 128, norm=True),
        "linear-batchnorm-relu-linear",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_backbone_and_projection_head_come_in_to_the_bit(case: str, tmp_path: Path) -> None:
    source, make, like, kind = CASES[case]
    content = make()
    torch.save(content, tmp_path / "in.pth")
    manifest = import_file(tmp_path / "in.pth", tmp_path / "out", source=source, backbone="torchvision/resnet18")
    head = manifest.heads["projection"]
    assert (head.kind, head.in_dim) == (kind, 512)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    backbone = load_checkpoint(tmp_path / "out")[0].eval()
    with torch.no_grad():
        pooled = backbone(images).pooled
        assert torch.equal(pooled, resnet()(images))
        kept = load_heads(tmp_path / "out", "projection")
        like.load_state_dict(kept)
        assert torch.equal(build_head(head, kept)(pooled), like.eval()(pooled))
    assert any("left out by rule" in note for note in manifest.notes)  # each of these files holds more


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net.state_dict(),
        lambda net: prefixed("backbone.", net),
        lambda net: {
            "student": prefixed("module.backbone.", net) | {"module.head.mlp.0.weight": torch.zeros(3, 3)},
            "teacher": prefixed("backbone.", net) | {"head.mlp.0.weight": torch.zeros(3, 3)},
            "epoch": 100,
        },
    ],
    ids=["backbone alone", "wrapped", "training file"],
)
def test_dino_files_come_in_whatever_they_stand_in(wrap: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0).eval()
    torch.save(wrap(net), tmp_path / "in.pth")
    arguments = {"depth": 2}
    import_file(
        tmp_path / "in.pth", tmp_path / "out", source="dino", backbone="timm/vit_tiny_patch16_224", arguments=arguments
    )
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(load_checkpoint(tmp_path / "out")[0].eval()(images).pooled, net(images), atol=1e-6)


@pytest.mark.parametrize(
    ("source", "extra"), [("moco", "module.head.weight"), ("simreg", "optimizer.weight"), ("moco", "encoder_x.a")]
)
def test_a_tensor_without_a_rule_is_named(source: str, extra: str, tmp_path: Path) -> None:
    name = "encoder_q." if source == "moco" else "encoder_q.module."
    torch.save(prefixed(name, resnet()) | {extra: torch.zeros(1)}, tmp_path / "in.pth")
    with pytest.raises(CheckpointError, match=f"no rule for 1 tensors: {extra}"):
        import_file(tmp_path / "in.pth", tmp_path / "out", source=source, backbone="torchvision/resnet18")
    assert not (tmp_path / "out").exists()


def test_simclrs_wide_resnet_is_four_times_as_wide_everywhere() -> None:
    with torch.device("meta"):
        backbone = load_backbone("random:simclr/resnet50x4")
    assert backbone.spec.dim == 8192
    assert [level.channels for level in backbone.spec.levels] == [1024, 2048, 4096, 8192]
    plain = torchvision.models.resnet50().state_dict()
    wide = backbone.net.state_dict()
    assert wide.keys() == plain.keys() - {"fc.weight", "fc.bias"}
    for key, tensor in wide.items():
        expected = [4 * side if side > 7 else side for side in plain[key].shape]
        assert list(tensor.shape) == expected, key
    with pytest.raises(ValueError, match="is published as a file only"):
        load_backbone("simclr/resnet50x4")


def classifier() -> nn.Module:
    torch.manual_seed(2)
    return resnet(nn.Linear(512, 7))


def test_a_converted_simclr_file_comes_in_under_torchvisions_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(simclr.WIDTHS, "resnet50x4", 1)  # the file of the real one has 1.5 GB
    torch.save({"state_dict": torchvision.models.resnet50().state_dict()}, tmp_path / "in.pth")
    manifest = import_file(tmp_path / "in.pth", tmp_path / "out", source="torchvision", backbone="simclr/resnet50x4")
    assert manifest.backbone.input.mean == (0.0, 0.0, 0.0) and manifest.heads["classifier"].out_dim == 1000


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """An imported ResNet-18 with a classifier of 7 classes and an input of its own."""
    torch.save(classifier().state_dict(), tmp_path / "in.pth")
    changes = {"size": 96, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
    import_file(tmp_path / "in.pth", tmp_path / "ckpt", source="torchvision", backbone=R18, **changes)
    return tmp_path / "ckpt"


def test_the_hub_layout_loads_in_timm_with_input_and_classifier(student: Path, tmp_path: Path) -> None:
    export_file(student, tmp_path / "hub", target="huggingface")
    net = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(net(images), classifier()(images))
        features = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True, num_classes=0).eval()
        assert torch.equal(features(images), load_checkpoint(student)[0].eval()(images).pooled)
    config = timm.data.resolve_model_data_config(net)
    said = [tuple(config[name]) for name in ("input_size", "mean", "std")]
    assert said == [(3, 96, 96), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)]
    assert (tmp_path / "hub.json").exists()


def test_what_timms_layout_cannot_say_is_refused(tmp_path: Path) -> None:
    torch.save(resnet().state_dict(), tmp_path / "in.pth")
    import_file(
        tmp_path / "in.pth",
        tmp_path / "bgr",
        source="torchvision",
        backbone="torchvision/resnet18",
        channel_order="bgr",
    )
    with pytest.raises(CheckpointError, match=r"takes bgr in .*: timm's layout cannot express that"):
        export_file(tmp_path / "bgr", tmp_path / "hub", target="huggingface")
    assert not (tmp_path / "hub").exists()


@pytest.mark.slow  # torch.export traces the net
@pytest.mark.parametrize("name", ["cifar/resnet20", "timm/vit_tiny_patch16_224"])
def test_onnx_gives_the_same_features_at_any_batch(name: str, tmp_path: Path) -> None:
    backbone = load_backbone(f"random:{name}")
    save_checkpoint(tmp_path / "ckpt", backbone, method="random", package="test")
    export_file(tmp_path / "ckpt", tmp_path / "net.onnx", target="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    side = backbone.spec.input.size
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, side, side)
        with torch.no_grad():
            expected = load_checkpoint(tmp_path / "ckpt")[0].eval()(images).pooled
        ours = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_an_error_of_the_net_is_not_called_a_failed_export(tmp_path: Path) -> None:
    class Net(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise IndexError("a bug")

    spec = BackboneSpec(name="module/Net", dim=2, input=InputSpec(size=8))
    with pytest.raises(IndexError, match="a bug"):
        write_onnx(tmp_path / "net.onnx", Backbone.from_module(Net(), spec))


def test_onnx_without_its_packages_is_one_sentence(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CheckpointError, match=r"pip install 'stillroom-convert\[onnx\]'"):
        export_file(student, tmp_path / "net.onnx", target="onnx")
    assert not (tmp_path / "net.onnx").exists()
