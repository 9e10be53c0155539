"""What each project publishes: the input of its own evaluation, and nets that only it has."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from tests.convert.conftest import build_library_net, trained, write_pth
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.backbone import CheckpointError, InputSpec, load_checkpoint
from stillroom.backbone.families import simclr
from stillroom.convert.importing import import_file
from stillroom.convert.sources import SOURCES

State = dict[str, Tensor]


def bare(net: nn.Module) -> State:
    """The tensors of a net without its classifier's."""
    return {key: tensor for key, tensor in net.state_dict().items() if not key.startswith(("fc.", "classifier."))}


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


# the default is 224 of 256 px of the short side, bilinear, antialiased, ImageNet's mean and std; torchvision publishes
# 224 of 232 px for both nets
NARROW = {"width_per_group": 4}
PUBLISHED = {
    "kdep": ("module.model.", InputSpec(), "torchvision/resnet50", NARROW),
    "simreg": ("encoder_q.module.", InputSpec(), "torchvision/mobilenet_v2", {"width_mult": 0.25}),
    "moco": ("module.encoder_q.", InputSpec(), "torchvision/mobilenet_v2", {"width_mult": 0.25}),
    "swav": ("module.", InputSpec(std=(0.228, 0.224, 0.225)), "torchvision/mobilenet_v2", {"width_mult": 0.25}),
    "dino": ("backbone.", InputSpec(interpolation="bicubic"), "torchvision/mobilenet_v2", {"width_mult": 0.25}),
}


@pytest.mark.parametrize("source", PUBLISHED)
def test_the_input_is_the_sources_own_whatever_a_library_publishes_for_the_net(tmp_path: Path, source: Any) -> None:
    prefix, expected, name, arguments = PUBLISHED[source]
    file = write_pth(tmp_path / "in.pth", prefixed(prefix, bare(build_library_net(name, **arguments))))
    net = {"source": source, "backbone": name, "arguments": arguments}
    manifest = import_file(file, tmp_path / "a", **net)
    assert manifest.backbone.input == expected
    assert not any("does not state its input" in note for note in manifest.notes)
    changed = import_file(file, tmp_path / "b", **net, interpolation="bicubic", size=64)
    assert (changed.backbone.input.interpolation, changed.backbone.input.size) == ("bicubic", 64)


def test_every_source_but_the_libraries_publishes_an_input() -> None:
    assert {name for name, facts in SOURCES.items() if facts.input is None} == {"torchvision", "timm"}


def test_a_dino_vit_has_dinos_input_and_the_size_it_is_built_for(tmp_path: Path) -> None:
    arguments = {"depth": 1, "img_size": 64, "num_classes": 0}
    net = timm.create_model("vit_tiny_patch16_224", **arguments)
    file = write_pth(tmp_path / "in.pth", {"teacher": prefixed("module.backbone.", net.state_dict())})
    spec = import_file(
        file, tmp_path / "a", source="dino", backbone="timm/vit_tiny_patch16_224", arguments=arguments
    ).backbone
    assert spec.input == InputSpec(size=64, interpolation="bicubic")
    assumed = import_file(
        write_pth(tmp_path / "timm.pth", net.state_dict()),
        tmp_path / "b",
        source="timm",
        backbone="timm/vit_tiny_patch16_224",
        arguments=arguments,
    )
    assert assumed.backbone.input.size == 64 and assumed.backbone.input.mean == (0.5, 0.5, 0.5)
    assert "so crop_fraction, resize" in assumed.notes[-1]  # the size is known


def test_a_size_that_the_net_does_not_take_is_refused(tmp_path: Path) -> None:
    arguments = {"depth": 1, "num_classes": 0, "dynamic_img_size": False}
    net = timm.create_model("vit_tiny_patch16_224", **arguments)
    file = write_pth(tmp_path / "in.pth", net.state_dict())
    with pytest.raises(
        ValueError,
        match=r"takes no images of 64 x 64 px .*: pass another --size.*; or build the net for it: .* img_size=64$",
    ):
        import_file(
            file, tmp_path / "a", source="timm", backbone="timm/vit_tiny_patch16_224", arguments=arguments, size=64
        )
    flexible = {"depth": 1, "num_classes": 0}  # not at 100 px either, if it is built for that
    with pytest.raises(ValueError, match=r"pass another --size; the nearest sizes that work are 96 and 112 px$"):
        import_file(
            file, tmp_path / "a", source="timm", backbone="timm/vit_tiny_patch16_224", arguments=flexible, size=100
        )
    assert not (tmp_path / "a").exists()


def same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad as TensorFlow's SAME: the output has ceil(side / stride) pixels, an odd pixel goes below and to the right."""
    height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[2], x.shape[3]))
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


def resnet50_with_same(state: State, images: Tensor) -> Tensor:
    """The pooled feature of a ResNet-50 by hand: every window is padded as SAME, whatever its stride."""

    def convolve(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        x = F.conv2d(same(x, weight.shape[-1], stride), weight, stride=stride)
        statistics = [state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *statistics)

    x = convolve(images, "conv1", "bn1", 2).relu()
    x = F.max_pool2d(same(x, 3, 2), 3, 2)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = convolve(x, f"{name}.conv1", f"{name}.bn1").relu()
            out = convolve(out, f"{name}.conv2", f"{name}.bn2", stride).relu()
            out = convolve(out, f"{name}.conv3", f"{name}.bn3")
            if block == 0:
                x = convolve(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = (out + x).relu()
    return x.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    torch.manual_seed(0)
    return trained(torchvision.models.resnet50(num_classes=3, **NARROW))


@pytest.mark.parametrize("prefix", ["", "module.encoder_q."])
def test_a_byol_teacher_pads_as_tensorflows_same(tmp_path: Path, resnet50: nn.Module, prefix: str) -> None:
    state = resnet50.state_dict()
    counted = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    content = prefixed(prefix, counted)
    if prefix:
        content |= {"module.queue": torch.zeros(2), "module.predict_q.0.weight": torch.zeros(2, 2)}
    file = write_pth(tmp_path / "byol.pth.tar", content)
    manifest = import_file(file, tmp_path / "a", source="byol", arguments=NARROW)
    assert manifest.backbone.name == "byol/resnet50" and manifest.backbone.input == InputSpec()
    assert manifest.heads["classifier"].out_dim == 3
    loaded = load_checkpoint(tmp_path / "a")[0].eval()
    for side in (64, 65, 50):
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            pooled, expected = loaded(images).pooled, resnet50_with_same(state, images)
            plain = nn.Sequential(*list(resnet50.children())[:-1])(images).flatten(1)
        assert torch.allclose(pooled, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        if side == 64:  # what loading it as torchvision/resnet50 did
            assert (plain - expected).norm() / expected.norm() > 0.02


def test_a_byol_file_for_another_net_is_refused(tmp_path: Path) -> None:
    file = write_pth(tmp_path / "in.pth", {"x": torch.ones(1)})
    with pytest.raises(
        CheckpointError, match=r"source byol holds byol/resnet50 \(a ResNet-50 that pads as .*, not tor"
    ):
        import_file(file, tmp_path / "a", source="byol", backbone="torchvision/resnet50")


def numbered(net: nn.Module) -> State:
    """A ResNet-50 under TensorFlow's layer numbers, in the order in which TensorFlow builds it: shortcuts first."""
    convolutions, norms = ["conv1"], ["bn1"]
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            if block == 0:
                convolutions.append(f"layer{stage}.0.downsample.0")
                norms.append(f"layer{stage}.0.downsample.1")
            convolutions += [f"layer{stage}.{block}.conv{i}" for i in (1, 2, 3)]
            norms += [f"layer{stage}.{block}.bn{i}" for i in (1, 2, 3)]
    assert len(convolutions) == len(norms) == 53
    names = {}
    for number, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
        suffix = f"_{number}" if number else ""
        names |= {convolution: f"conv2d{suffix}", norm: f"batch_normalization{suffix}"}
    renamed = {}
    for key, tensor in net.state_dict().items():
        module, _, parameter = key.rpartition(".")
        renamed[f"{names.get(module, module)}.{parameter}"] = tensor
    return renamed


@pytest.fixture
def thin_simclr(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real net has 1.5 GB."""
    monkeypatch.setitem(simclr.WIDTHS, "resnet50x4", 1)
    monkeypatch.setattr(simclr, "resnet50", partial(torchvision.models.resnet50, **NARROW))


@pytest.mark.usefixtures("thin_simclr")
def test_simregs_simclr_file_comes_in_with_imagenets_statistics(tmp_path: Path, resnet50: nn.Module) -> None:
    content = {"state_dict": prefixed("module.", numbered(resnet50))}
    manifest = import_file(write_pth(tmp_path / "in.pth", content), tmp_path / "a", source="simclr")
    assert manifest.backbone.name == "simclr/resnet50x4" and manifest.backbone.input == InputSpec()
    assert manifest.heads["classifier"].out_dim == 3
    assert any("SimReg feeds this file ImageNet's mean and std" in note for note in manifest.notes)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pooled = load_checkpoint(tmp_path / "a")[0].eval()(images).pooled
        assert torch.equal(pooled, nn.Sequential(*list(resnet50.children())[:-1])(images).flatten(1))


@pytest.mark.usefixtures("thin_simclr")
def test_a_simclr_file_under_torchvisions_names_takes_pixels_from_0_to_1(tmp_path: Path, resnet50: nn.Module) -> None:
    file = write_pth(tmp_path / "in.pth", {"state_dict": resnet50.state_dict()})
    manifest = import_file(file, tmp_path / "a", source="simclr")
    assert manifest.backbone.input == InputSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.mark.parametrize("nested", ["_orig_mod.module.", "model.module._orig_mod."])
@pytest.mark.parametrize("source", PUBLISHED)
def test_nested_prefixes_are_stripped_for_every_source_and_noted(tmp_path: Path, source: Any, nested: str) -> None:
    prefix, _, name, arguments = PUBLISHED[source]
    state = prefixed(nested + prefix.removeprefix("module."), bare(build_library_net(name, **arguments)))
    file = write_pth(tmp_path / "in.pth", state)
    manifest = import_file(file, tmp_path / "a", source=source, backbone=name, arguments=arguments)
    assert any(note.startswith(f"prefixes stripped from keys: {nested}") for note in manifest.notes)


def test_kdeps_other_losses_are_left_out(tmp_path: Path) -> None:
    state = prefixed("module.model.model.", bare(build_library_net("torchvision/resnet50", **NARROW)))
    state |= {"module.model.model.emb.weight": torch.ones(2, 2), "module.model.model.feat_scale": torch.ones(1)}
    file = write_pth(tmp_path / "in.pth", state)
    manifest = import_file(file, tmp_path / "a", source="kdep", backbone="torchvision/resnet50", arguments=NARROW)
    assert "2 tensors left out by rule, the first is module.model.model.emb.weight" in manifest.notes
