"""Other projects' files into checkpoints, against the nets they belong to."""

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from tests.convert.conftest import build_library_net, trained, write_pth
from torch import Tensor, nn

from stillroom.backbone import CheckpointError, build_backbone, load_checkpoint, load_heads, verify_checkpoint
from stillroom.convert.exporting import export_file
from stillroom.convert.importing import import_file
from stillroom.convert.reading import read_state

Images = Callable[[int], Tensor]


# name, arguments, prefix of the classifier's keys; ResNets have a test of their own, which also crosses libraries
FILES = {
    "torchvision/mobilenet_v2": ({"width_mult": 0.25}, "classifier."),
    "torchvision/mobilenet_v3_small": ({}, "classifier."),
    "torchvision/regnet_y_400mf": ({}, "fc."),
    "timm/mobilenetv2_100": ({}, "classifier."),
    "timm/mobilenetv4_conv_small_035": ({}, "classifier."),
    "timm/regnety_002": ({}, "head.fc."),
    "timm/convnext_atto": ({"depths": [1, 1, 2, 1]}, "head.fc."),
    "timm/vit_tiny_patch16_224": ({"depth": 4}, "head."),
}


@pytest.mark.parametrize("name", FILES)
def test_a_librarys_file_goes_in_and_out_to_the_bit(name: str, tmp_path: Path, images: Images) -> None:
    arguments, prefix = FILES[name]
    library = name.partition("/")[0]
    net = trained(build_library_net(name, **arguments))
    state = net.state_dict()
    file = write_pth(tmp_path / "in.pth", state)
    first = import_file(file, tmp_path / "a", source=library, backbone=name, arguments=arguments)
    assert (first.method, first.backbone.arguments) == ("import", arguments)
    assert [note[:35] for note in first.notes] == ["the file does not state its input, "]
    kept = load_heads(tmp_path / "a", "classifier")
    assert {f"{prefix}{key}" for key in kept} == {key for key in state if key.startswith(prefix)}

    export_file(tmp_path / "a", tmp_path / "out.safetensors", target=library)
    fresh = build_library_net(name, **arguments).eval()
    fresh.load_state_dict(load_file(tmp_path / "out.safetensors"), strict=True)
    pixels = images(224 if "vit" in name else 64)
    assert torch.equal(fresh(pixels), net(pixels))

    second = import_file(
        tmp_path / "out.safetensors", tmp_path / "b", source=library, backbone=name, arguments=arguments
    )
    assert (second.weights, second.heads, second.backbone) == (first.weights, first.heads, first.backbone)
    one, two = (load_checkpoint(tmp_path / folder)[0].eval()(pixels) for folder in "ab")
    assert torch.equal(one.pooled, two.pooled)
    assert all(torch.equal(x, y) for x, y in zip(one.maps, two.maps, strict=True))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
        lambda state: {"state_dict": state, "best_acc1": torch.tensor(0.7)},
        lambda state: {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}, "arch": "resnet18"},
    ],
    ids=["bare", "model", "state_dict", "data-parallel"],
)
def test_a_state_dict_is_found_where_training_scripts_put_it(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], dict[str, Any]]
) -> None:
    state = trained(torchvision.models.mobilenet_v3_small()).state_dict()
    file = write_pth(tmp_path / "in.pth", wrap(state))
    import_file(file, tmp_path / "a", source="torchvision", backbone="torchvision/mobilenet_v3_small")
    loaded = load_file(tmp_path / "a" / "model.safetensors") | {
        f"classifier.{key}": tensor for key, tensor in load_heads(tmp_path / "a", "classifier").items()
    }
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_the_norm_before_convnexts_classifier_stays_with_the_backbone(tmp_path: Path) -> None:
    state = torchvision.models.convnext_tiny(num_classes=2).state_dict()
    file = write_pth(tmp_path / "in.pth", state)
    import_file(file, tmp_path / "a", source="torchvision", backbone="torchvision/convnext_tiny")
    head = load_heads(tmp_path / "a", "classifier")
    assert head.keys() == {"weight", "bias"}
    assert torch.equal(head["weight"], state["classifier.2.weight"])
    kept = load_file(tmp_path / "a" / "model.safetensors")
    assert torch.equal(kept["classifier.0.weight"], state["classifier.0.weight"])


def test_a_file_without_a_classifier_makes_no_head(tmp_path: Path) -> None:
    state = build_backbone("torchvision/mobilenet_v3_small").net.state_dict()
    manifest = import_file(
        write_pth(tmp_path / "in.pth", state),
        tmp_path / "a",
        source="torchvision",
        backbone="torchvision/mobilenet_v3_small",
    )
    assert manifest.heads == {}
    assert not (tmp_path / "a" / "heads.safetensors").exists()


def test_a_classifier_of_one_matrix_is_linear_and_of_two_an_mlp(tmp_path: Path) -> None:
    for name, kind, in_dim in (("mobilenet_v2", "linear", 1280), ("mobilenet_v3_small", "mlp", 576)):
        state = torchvision.models.get_model(name, num_classes=5).state_dict()
        file = write_pth(tmp_path / f"{name}.pth", state)
        heads = import_file(file, tmp_path / name, source="torchvision", backbone=f"torchvision/{name}").heads
        head = heads["classifier"]
        assert (head.kind, head.in_dim, head.out_dim) == (kind, in_dim, 5)


def robustness(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A file of the robustness library: the net, the attacker's mirror of it, the normaliser twice."""
    mean, std = torch.tensor([0.5, 0.25, 0.125]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    mirror = prefix.replace("module.model.", "module.attacker.model.", 1)
    return {
        **{f"{prefix}{key}": tensor for key, tensor in state.items()},
        **{f"{mirror}{key}": tensor.clone() for key, tensor in state.items()},
        "module.normalizer.new_mean": mean,
        "module.normalizer.new_std": std,
        "module.attacker.normalize.new_mean": mean,
        "module.attacker.normalize.new_std": std,
    }


@pytest.mark.parametrize(("prefix", "wrapper"), [("module.model.", "model"), ("module.model.model.", "state_dict")])
def test_a_kdep_resnet_gives_torchvisions_features(tmp_path: Path, images: Images, prefix: str, wrapper: str) -> None:
    net = trained(torchvision.models.resnet18(num_classes=10))
    content = {
        wrapper: robustness(net.state_dict(), prefix),
        "optimizer": {"param_groups": []},
        "epoch": 90,
        "amp": None,
    }
    file = write_pth(tmp_path / "kdep.pt", content)
    manifest = import_file(file, tmp_path / "a", source="kdep", backbone="torchvision/resnet18")
    spec = manifest.backbone
    assert (spec.input.mean, spec.input.std) == ((0.5, 0.25, 0.125), (0.2, 0.3, 0.4))
    assert (manifest.heads["classifier"].in_dim, manifest.heads["classifier"].out_dim) == (512, 10)
    loaded, head = load_checkpoint(tmp_path / "a")[0].eval(), load_heads(tmp_path / "a", "classifier")
    pixels = images(64)
    pooled = loaded.at("after")(pixels).pooled
    assert torch.equal(nn.functional.linear(pooled, head["weight"], head["bias"]), net(pixels))


def test_the_given_input_wins_over_the_files_normaliser(tmp_path: Path) -> None:
    file = write_pth(tmp_path / "kdep.pt", robustness(torchvision.models.resnet18().state_dict(), "module.model."))
    manifest = import_file(
        file, tmp_path / "a", source="kdep", backbone="torchvision/resnet18", mean=(0.1, 0.1, 0.1), size=96
    )
    assert manifest.backbone.input.mean == (0.1, 0.1, 0.1)
    assert manifest.backbone.input.std == (0.2, 0.3, 0.4)
    assert manifest.backbone.input.size == 96


class FlatBlock(nn.Module):
    """An inverted residual whose layers all stand in one Sequential `conv`, as in KDEP's code."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.adds = stride == 1 and in_channels == channels
        widen = [nn.Conv2d(in_channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        self.conv = nn.Sequential(
            *(widen if expansion != 1 else []),
            *(nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class KdepMobileNetV2(nn.Module):
    """Sandler et al. (CVPR 2018), table 2, with the last 1x1 convolution outside `features`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        blocks, width = [], 32
        for t, c, n, s in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for i in range(n):
                blocks.append(FlatBlock(width, c, s if i == 0 else 1, t))
                width = c
        self.features = nn.Sequential(stem, *blocks)
        self.conv = nn.Sequential(nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6())
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.conv(self.features(images)).mean(dim=(2, 3)))


@pytest.mark.parametrize("prefix", ["module.model.", "module.model.model."])
def test_kdeps_mobilenet_v2_gives_its_own_features(tmp_path: Path, images: Images, prefix: str) -> None:
    net = trained(KdepMobileNetV2(num_classes=4))
    file = write_pth(tmp_path / "kdep.pt", {"model": robustness(net.state_dict(), prefix), "epoch": 1})
    import_file(file, tmp_path / "a", source="kdep", backbone="torchvision/mobilenet_v2")
    loaded, head = load_checkpoint(tmp_path / "a")[0].eval(), load_heads(tmp_path / "a", "classifier")
    pixels = images(64)
    before = net.conv[:2](net.features(pixels))
    assert torch.equal(loaded.at("before")(pixels).pooled, before.mean(dim=(2, 3)))
    assert torch.equal(loaded.at("after")(pixels).pooled, before.clamp(0, 6).mean(dim=(2, 3)))
    logits = nn.functional.linear(loaded.at("after")(pixels).pooled, head["1.weight"], head["1.bias"])
    assert torch.equal(logits, net(pixels))


def test_kdep_files_hold_nets_of_torchvision_only(tmp_path: Path) -> None:
    file = write_pth(tmp_path / "kdep.pt", {"module.model.x": torch.ones(1)})
    with pytest.raises(CheckpointError, match="kdep holds torchvision's ResNets and MobileNet-V2, not timm/resnet18"):
        import_file(file, tmp_path / "a", source="kdep", backbone="timm/resnet18")


@pytest.mark.parametrize("how", ["altered", "absent"])
def test_a_mirror_that_does_not_mirror_is_refused(tmp_path: Path, how: str) -> None:
    state = robustness(torchvision.models.resnet18().state_dict(), "module.model.")
    if how == "altered":
        state["module.attacker.model.bn1.weight"][3] += 1
    else:
        del state["module.model.bn1.weight"]
    file = write_pth(tmp_path / "kdep.pt", state)
    sentence = r"module\.attacker\.model\.bn1\.weight should mirror module\.model\.bn1\.weight and does not"
    with pytest.raises(CheckpointError, match=sentence):
        import_file(file, tmp_path / "a", source="kdep", backbone="torchvision/resnet18")
    assert not (tmp_path / "a").exists()


def test_half_precision_and_absent_counters_are_mended_and_noted(tmp_path: Path) -> None:
    state = trained(torchvision.models.mobilenet_v2(width_mult=0.25)).state_dict()
    thin = {key: tensor.half() for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    file = write_pth(tmp_path / "in.pth", thin)
    width = {"width_mult": 0.25}
    manifest = import_file(
        file, tmp_path / "a", source="torchvision", backbone="torchvision/mobilenet_v2", arguments=width
    )
    assert manifest.notes[:2] == ("260 tensors became float32 from float16", "52 absent num_batches_tracked became 0")
    assert verify_checkpoint(tmp_path / "a").notes == manifest.notes
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    assert torch.equal(tensors["features.0.0.weight"], thin["features.0.0.weight"].float())
    assert tensors["features.0.1.num_batches_tracked"].item() == 0
    assert load_heads(tmp_path / "a", "classifier")["1.weight"].dtype == torch.float32


class Hostile:
    """A pickle that runs a command when it is opened."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    hostile = Hostile(f"touch {mark}")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"conv1.weight": hostile}, protocol=2))
    write_pth(tmp_path / "zipped.pth", {"state_dict": {"conv1.weight": torch.ones(1)}, "config": hostile})
    for name in ("plain.pth", "zipped.pth"):
        with pytest.raises(CheckpointError, match=rf"{name} holds more than tensors and is not loaded \(weights"):
            import_file(tmp_path / name, tmp_path / "a", source="torchvision", backbone="torchvision/resnet18")
    assert not mark.exists()
    assert not (tmp_path / "a").exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())  # noqa: S301  # what would have happened
    assert mark.exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"there is no file {tmp_path}/no.pth"):
        read_state(tmp_path / "no.pth")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.safetensors", b""), ("a.safetensors", b"\xff" * 40), ("a.pth", b""), ("a.pth", b"PK\x03\x04 torn")],
)
def test_a_damaged_file_cannot_be_read(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} (cannot be read: .|is empty: copy|is damaged, or)"):
        read_state(tmp_path / name)


def test_a_file_that_is_no_pickle_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "junk.pth").write_bytes(b"junk, 20 bytes of it")
    with pytest.raises(
        CheckpointError, match=r"junk\.pth is not a PyTorch file: copy or download it again, or save the"
    ):
        read_state(tmp_path / "junk.pth")


@pytest.mark.parametrize("cut", [10, 1000, -10])
def test_a_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    file = write_pth(tmp_path / "a.pth", torchvision.models.mobilenet_v2(width_mult=0.25).state_dict())
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"a\.pth is damaged, or holds more than tensors \("):
        read_state(file)


@pytest.mark.parametrize(
    "content",
    [[torch.ones(1)], {}, {"model": {}}, {"epoch": 3}, torch.ones(3), {"a": torch.ones(1), "b": [3]}],
    ids=["list", "empty", "empty model", "no tensors", "tensor", "mixed"],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    file = write_pth(tmp_path / "a.pth", content)
    with pytest.raises(CheckpointError, match=r"a\.pth is not a state dict: .* bare or under model or state_dict"):
        read_state(file)


def test_tensors_without_a_place_are_named(tmp_path: Path) -> None:
    state = build_backbone("torchvision/resnet18").net.state_dict()
    state["extra.weight"] = torch.ones(1)
    del state["bn1.bias"]
    state["conv1.weight"] = torch.ones(64, 3, 3, 3)
    sentence = (
        r"in\.pth does not fit torchvision/resnet18: "
        r"1 missing: bn1\.bias; 1 foreign: extra\.weight; 1 of another shape: conv1\.weight"
    )
    with pytest.raises(CheckpointError, match=sentence):
        import_file(
            write_pth(tmp_path / "in.pth", state), tmp_path / "a", source="torchvision", backbone="torchvision/resnet18"
        )
    assert not (tmp_path / "a").exists()
    kdep = robustness({**build_backbone("torchvision/resnet18").net.state_dict()}, "module.model.")
    kdep["module.queue"] = torch.ones(1)
    with pytest.raises(CheckpointError, match=r"kdep\.pth: no rule for 1 tensors: module\.queue"):
        import_file(
            write_pth(tmp_path / "kdep.pth", kdep), tmp_path / "a", source="kdep", backbone="torchvision/resnet18"
        )


def test_a_classifier_without_a_matrix_is_refused(tmp_path: Path) -> None:
    state = build_backbone("torchvision/resnet18").net.state_dict() | {"fc.bias": torch.ones(3)}
    file = write_pth(tmp_path / "in.pth", state)
    with pytest.raises(CheckpointError, match=r"the classifier in this file has no weight matrix, only \['bias'\]"):
        import_file(file, tmp_path / "a", source="torchvision", backbone="torchvision/resnet18")


@pytest.mark.parametrize(("source", "backbone"), [("torchvision", "timm/resnet18"), ("timm", "cifar/resnet20")])
def test_a_source_holds_its_own_nets_only(tmp_path: Path, source: str, backbone: str) -> None:
    file = write_pth(tmp_path / "in.pth", {"x": torch.ones(1)})
    with pytest.raises(CheckpointError, match=f"source {source} holds nets of {source}/, not {backbone}"):
        import_file(file, tmp_path / "a", source=source, backbone=backbone)


def test_import_does_not_replace_what_exists(tmp_path: Path) -> None:
    file = write_pth(tmp_path / "in.pth", {"x": torch.ones(1)})
    with pytest.raises(CheckpointError, match=f"{tmp_path} exists: choose another --out"):
        import_file(file, tmp_path, source="torchvision", backbone="torchvision/resnet18")


def test_safetensors_go_in_as_pickles_do(tmp_path: Path) -> None:
    state = trained(timm.create_model("mobilenetv3_small_050")).state_dict()
    save_file(state, tmp_path / "in.safetensors")
    file = write_pth(tmp_path / "in.pth", state)
    records = [
        import_file(f, tmp_path / f.suffix[1:], source="timm", backbone="timm/mobilenetv3_small_050").weights
        for f in (file, tmp_path / "in.safetensors")
    ]
    assert records[0] == records[1]
