"""Checkpoints: what goes in comes out to the bit, and whatever is wrong with one is said in a sentence."""

import hashlib
import json
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from tests.backbone.conftest import Family
from torch import Tensor, nn

from stillroom.backbone import (
    Backbone,
    BackboneSpec,
    CheckpointError,
    Data,
    Head,
    InputSpec,
    Level,
    Licence,
    Teacher,
    build_backbone,
    load_checkpoint,
    load_heads,
    save_checkpoint,
    verify_checkpoint,
    weights_sha256,
)
from stillroom.backbone.checkpoint import load_strictly

SCHEMA_1 = Path(__file__).parent / "fixtures" / "schema-1"


def tiny(value: float = 1.0, name: str = "module/Tiny", **changes: Any) -> Backbone:
    """A net of 8 numbers."""
    net = nn.Conv2d(3, 2, 1)
    nn.init.constant_(net.weight, value)
    nn.init.constant_(net.bias, value / 2)
    return Backbone.from_module(net, BackboneSpec(name=name, dim=2, **changes))


def store(path: Path, backbone: Backbone | None = None, **changes: Any) -> Path:
    save_checkpoint(path, backbone or tiny(), **({"method": "kdep", "package": "stillroom-distill"} | changes))
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a checkpoint's manifest."""
    raw = json.loads((path / "manifest.json").read_text())
    change(raw)
    (path / "manifest.json").write_text(json.dumps(raw))


def put_model(path: Path, content: bytes) -> None:
    """Another model.safetensors, to which the manifest agrees."""
    (path / "model.safetensors").write_bytes(content)
    record = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edit(path, lambda raw: raw["files"].update({"model.safetensors": record}))


def test_every_family_comes_back_to_the_bit(family: Family, opened: Backbone, images: Callable[[int], Tensor]) -> None:
    saved = opened.at("before")
    with tempfile.TemporaryDirectory() as folder:  # these are large: gone at once
        path = Path(folder) / "student"
        written = save_checkpoint(path, saved, method="kdep", package="stillroom-distill")
        loaded, manifest = load_checkpoint(path)
        assert sorted(f.name for f in path.iterdir()) == ["manifest.json", "model.safetensors"]
    assert manifest == written
    assert loaded.spec == saved.spec == manifest.backbone
    own, back = saved.net.state_dict(), loaded.net.state_dict()
    assert own.keys() == back.keys()
    assert all(torch.equal(own[key], back[key]) and own[key].dtype == back[key].dtype for key in own)
    pixels = images(family.sizes[0])
    first, second = saved(pixels), loaded.eval()(pixels)
    assert torch.equal(first.pooled, second.pooled)
    assert all(torch.equal(a, b) for a, b in zip(first.maps, second.maps, strict=True))


def test_everything_said_about_a_student_comes_back(tmp_path: Path) -> None:
    spec = replace(
        build_backbone("cifar/resnet20", feature="before").spec,
        input=InputSpec(size=48, crop_fraction=0.9, resize="squash", mean=(0.1, 0.2, 0.3), channel_order="bgr"),
        licence=Licence(spdx="CC-BY-NC-4.0", restrictions=("data: research only",)),
    )
    backbone = build_backbone("cifar/resnet20", feature="before")
    backbone.spec = spec
    said = {
        "config": {"epochs": 2, "nested": {"list": [1, None, "x"]}},
        "teacher": Teacher(name="timm/resnet18", weights_sha256="f" * 64, licence=Licence(spdx="MIT")),
        "data": Data(count=3, fingerprint="e" * 64),
        "notes": ("something was converted",),
    }
    store(tmp_path / "s", backbone, **said)
    loaded, manifest = load_checkpoint(tmp_path / "s")
    assert loaded.spec == manifest.backbone == spec
    assert (manifest.teacher, manifest.data, manifest.notes) == (said["teacher"], said["data"], said["notes"])
    assert manifest.made_by.config == said["config"]
    assert (manifest.method, manifest.made_by.package) == ("kdep", "stillroom-distill")


def test_the_manifest_counts_and_hashes_the_weights(tmp_path: Path) -> None:
    backbone = build_backbone("cifar/resnet20")
    manifest = verify_checkpoint(store(tmp_path / "s", backbone))
    assert manifest.weights.sha256 == weights_sha256(backbone.net)
    assert manifest.weights.tensors == len(backbone.net.state_dict()) == 19 + 19 * 5
    convolutions = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert manifest.weights.parameters == convolutions + norms


def test_every_file_beside_the_manifest_is_hashed(tmp_path: Path) -> None:
    heads = {"classifier": (Head(kind="linear", in_dim=2, out_dim=3), {"weight": torch.ones(3, 2)})}
    path = store(tmp_path / "s", heads=heads, alignment=save({"basis": torch.eye(2)}))
    manifest = verify_checkpoint(path)
    beside = {f.name for f in path.iterdir()} - {"manifest.json"}
    assert beside == manifest.files.keys() == {"model.safetensors", "heads.safetensors", "alignment.safetensors"}
    for name, record in manifest.files.items():
        content = (path / name).read_bytes()
        assert (record.sha256, record.bytes) == (hashlib.sha256(content).hexdigest(), len(content))


def test_a_checkpoint_holds_json_and_safetensors_and_no_pickle(tmp_path: Path) -> None:
    heads = {"classifier": (Head(kind="linear", in_dim=2, out_dim=3), {"weight": torch.ones(3, 2)})}
    path = store(tmp_path / "s", heads=heads, alignment=save({"basis": torch.eye(2)}))
    for file in path.iterdir():
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:
            assert file.suffix == ".safetensors" and load_file(file)


def test_heads_come_back_by_name_and_stay_out_of_the_backbone(tmp_path: Path) -> None:
    weight, bias, other = torch.randn(3, 2), torch.randn(3), torch.randn(4, 2)
    heads = {
        "classifier": (Head(kind="linear", in_dim=2, out_dim=3, classes=("a", "b", "c")), {"w": weight, "b": bias}),
        "projection": (Head(kind="linear", in_dim=2, out_dim=4), {"w": other}),
    }
    path = store(tmp_path / "s", heads=heads)
    assert verify_checkpoint(path).heads == {name: head for name, (head, _) in heads.items()}
    classifier = load_heads(path, "classifier")
    assert classifier.keys() == {"w", "b"}
    assert torch.equal(classifier["w"], weight) and torch.equal(classifier["b"], bias)
    assert torch.equal(load_heads(path, "projection")["w"], other)
    assert load_file(path / "model.safetensors").keys() == {"weight", "bias"}


def test_a_head_that_is_not_kept_is_refused_with_those_that_are(tmp_path: Path) -> None:
    head = Head(kind="linear", in_dim=2, out_dim=3)
    path = store(tmp_path / "s", heads={"classifier": (head, {"w": torch.ones(3, 2)})})
    with pytest.raises(CheckpointError, match=r"keeps no head named 'simreg'; it keeps \['classifier'\]"):
        load_heads(path, "simreg")


def test_tied_weights_are_stored(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    net[1].weight = net[0].weight
    path = store(tmp_path / "s", Backbone.from_module(net, BackboneSpec(name="module/Tied", dim=3)))
    tensors = load_file(path / "model.safetensors")
    assert torch.equal(tensors["0.weight"], net[0].weight) and torch.equal(tensors["1.weight"], net[0].weight)


def test_a_net_of_ones_own_is_filled(tmp_path: Path) -> None:
    path = store(tmp_path / "s", tiny(3.0, input=InputSpec(size=7)))
    empty = tiny(0.0)
    loaded, manifest = load_checkpoint(path, backbone=empty)
    assert loaded.net is empty.net and loaded.net.weight.unique().tolist() == [3.0]
    assert loaded.spec == manifest.backbone and loaded.spec.input.size == 7


def test_a_net_of_ones_own_has_to_be_passed(tmp_path: Path) -> None:
    path = store(tmp_path / "s")
    with pytest.raises(CheckpointError, match=r"holds module/Tiny, a net of your own: build it, .*backbone="):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "other",
    [
        tiny(name="module/Other"),
        Backbone.from_module(nn.Conv2d(3, 3, 1), BackboneSpec(name="module/Tiny", dim=3)),
        tiny(levels=(Level(name="conv", channels=2, stride=1),)),
    ],
    ids=["name", "dim", "levels"],
)
def test_a_backbone_of_another_name_dim_or_levels_is_not_filled(tmp_path: Path, other: Backbone) -> None:
    path = store(tmp_path / "s")
    kept = other.net.weight.clone()
    with pytest.raises(CheckpointError, match=r"holds module/Tiny of dim 2 with levels none, not module/\w+ of dim \d"):
        load_checkpoint(path, backbone=other)
    assert torch.equal(other.net.weight, kept)


def test_missing_foreign_and_reshaped_tensors_are_named() -> None:
    backbone = tiny()
    state = {"weight": torch.ones(2, 3, 3, 3), "scale": torch.ones(2)}
    sentence = "^a.pth does not fit module/Tiny: 1 missing: bias; 1 foreign: scale; 1 of another shape: weight$"
    with pytest.raises(CheckpointError, match=sentence):
        load_strictly(backbone, state, source="a.pth")
    assert backbone.net.weight.unique().tolist() == [1.0]  # nothing was filled in


def test_a_tensor_of_another_type_is_not_cast_without_a_word() -> None:
    backbone = tiny()
    state = {name: tensor.half() for name, tensor in backbone.net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"of another type: bias, weight$"):
        load_strictly(backbone, state, source="a.pth")


def test_of_many_missing_tensors_five_are_named() -> None:
    backbone = build_backbone("cifar/resnet20")
    with pytest.raises(CheckpointError, match=r": 114 missing: bn1\.bias(, [\w.]+){4}, \.\.\.$"):
        load_strictly(backbone, {}, source="x")


def test_a_checkpoint_without_one_of_the_nets_tensors_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "s", build_backbone("cifar/resnet20"))
    tensors = load_file(path / "model.safetensors")
    tensors["renamed"] = tensors.pop("conv1.weight")
    put_model(path, save(tensors))
    with pytest.raises(CheckpointError, match=r"s does not fit cifar/resnet20: 1 missing: conv1.weight; 1 foreign: "):
        load_checkpoint(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "s")
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    size = file.stat().st_size
    with pytest.raises(CheckpointError, match=rf"model.safetensors has {size} bytes, its manifest says {size + 1}"):
        load_checkpoint(path, backbone=tiny())


def test_what_is_loaded_is_what_was_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are read once: another process that replaces the file afterwards changes nothing."""
    path = store(tmp_path / "s", tiny(3.0))
    read_bytes = Path.read_bytes

    def read_and_replace(file: Path) -> bytes:
        content = read_bytes(file)
        file.write_bytes(b"another file")
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_replace)
    assert load_checkpoint(path, backbone=tiny(0.0))[0].net.weight.unique().tolist() == [3.0]
    with pytest.raises(CheckpointError, match="has 12 bytes, its manifest says"):
        load_checkpoint(path, backbone=tiny())


def test_a_head_without_its_file_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "s")
    head = {"kind": "linear", "in_dim": 2, "out_dim": 3, "classes": []}
    edit(path, lambda raw: raw["heads"].update({"classifier": head}))
    with pytest.raises(CheckpointError, match=r"describes the head .classifier. and lacks heads\.safetensors"):
        load_heads(path, "classifier")


def test_a_head_file_of_the_right_hash_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    path, content = store(tmp_path / "s"), b"PK\x03\x04 a pickle, for instance"
    (path / "heads.safetensors").write_bytes(content)
    record = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    head = {"kind": "linear", "in_dim": 2, "out_dim": 3, "classes": []}
    edit(path, lambda raw: (raw["files"].update({"heads.safetensors": record}), raw["heads"].update({"h": head})))
    for read in (verify_checkpoint, partial(load_heads, name="h")):
        with pytest.raises(CheckpointError, match=r"s/heads\.safetensors is not a safetensors file: "):
            read(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("sound") / "s")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_altered_byte_of_the_weights_is_refused(sound: Path, data: st.DataObject) -> None:
    file = sound / "model.safetensors"
    content = file.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
    try:
        file.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match=r"model.safetensors does not have the hash in its manifest"):
            verify_checkpoint(sound)
    finally:
        file.write_bytes(content)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "s")
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint .*s lacks model.safetensors: copy it again"):
        verify_checkpoint(path)


def test_a_file_that_the_manifest_does_not_list_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "s")
    (path / "heads.safetensors").write_bytes(save({"x": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"s holds heads.safetensors, which its manifest does not list"):
        verify_checkpoint(path)


def test_a_manifest_that_lists_no_model_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "s")
    edit(path, lambda raw: raw["files"].clear())
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"manifest.json does not list model.safetensors: copy or make"):
        verify_checkpoint(path)


def test_a_model_that_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "s")
    put_model(path, b"PK\x03\x04 a pickle, for instance")
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a safetensors file"):
        verify_checkpoint(path)


def test_another_number_of_tensors_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "s")
    put_model(path, save({"weight": torch.ones(2, 3, 1, 1)}))
    with pytest.raises(CheckpointError, match=r"model.safetensors has 1 tensors, expected 2"):
        verify_checkpoint(path)


def test_a_directory_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path} is not a checkpoint: it has no manifest.json"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (nn.DataParallel, r"module\."),
        (lambda net: nn.ModuleDict({"_orig_mod": net}), r"_orig_mod\."),  # torch.compile's keys, without its 5 s
    ],
    ids=["parallel", "compiled"],
)
def test_a_wrapped_net_is_refused(tmp_path: Path, wrap: Callable[[nn.Module], nn.Module], prefix: str) -> None:
    backbone = build_backbone("cifar/resnet20")
    backbone.net = wrap(backbone.net)
    with pytest.raises(CheckpointError, match=f"s: unwrap the net before saving it; its keys begin with '{prefix}"):
        store(tmp_path / "s", backbone)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_verified_nor_loaded(tmp_path: Path, value: float) -> None:
    with pytest.raises(CheckpointError, match=r"is not written: 2 tensors hold NaN or infinite values, the first is w"):
        store(tmp_path / "a", tiny(value))
    head = Head(kind="linear", in_dim=2, out_dim=1)
    with pytest.raises(CheckpointError, match=r"1 tensors hold NaN or infinite values, the first is probe\.weight"):
        store(tmp_path / "a", heads={"probe": (head, {"weight": torch.tensor([[value, 1.0]])})})
    assert not (tmp_path / "a").exists()
    path = store(tmp_path / "b", heads={"probe": (head, {"weight": torch.ones(1, 2)})})
    verify_checkpoint(path)
    put_model(path, save({"weight": torch.full((2, 3, 1, 1), value), "bias": torch.zeros(2)}))
    for read in (verify_checkpoint, lambda path: load_checkpoint(path, tiny())):
        with pytest.raises(CheckpointError, match="b: 1 tensors hold NaN or infinite values, the first is weight"):
            read(path)


def test_a_new_checkpoint_takes_the_place_of_an_old_one(tmp_path: Path) -> None:
    head = Head(kind="linear", in_dim=2, out_dim=3)
    path = store(tmp_path / "s", tiny(1.0), heads={"classifier": (head, {"w": torch.ones(3, 2)})})
    store(path, tiny(2.0))
    assert load_checkpoint(path, backbone=tiny())[0].net.weight.unique().tolist() == [2.0]
    assert sorted(f.name for f in path.iterdir()) == ["manifest.json", "model.safetensors"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_is_no_checkpoint_is_not_replaced(tmp_path: Path, what: str) -> None:
    photo = tmp_path / "photos" / "holiday.jpg" if what == "folder" else tmp_path / "photos"
    photo.parent.mkdir(exist_ok=True)
    photo.write_text("the only copy")
    with pytest.raises(CheckpointError, match=r"photos exists and is not a checkpoint: it is not replaced, choose"):
        store(tmp_path / "photos")
    assert photo.read_text() == "the only copy"


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow beyond `size` bytes: what a full disk does, per file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_without_space_one_sentence_is_raised_and_nothing_half_written_remains(tmp_path: Path) -> None:
    backbone = build_backbone("cifar/resnet20")  # 1.1 MB
    with room_for(100_000), pytest.raises(CheckpointError) as raised:
        store(tmp_path / "s", backbone)
    assert (
        str(raised.value)
        == f"checkpoint {tmp_path / 's'} could not be written (File too large): no file is half-written"
    )
    assert list(tmp_path.iterdir()) == []


def test_without_space_the_old_checkpoint_stays(tmp_path: Path) -> None:
    path = store(tmp_path / "s", build_backbone("cifar/resnet20"))
    before = {f.name: f.read_bytes() for f in path.iterdir()}
    with room_for(100_000), pytest.raises(CheckpointError, match="could not be written"):
        store(path, build_backbone("cifar/resnet20"))
    assert {f.name: f.read_bytes() for f in path.iterdir()} == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/s could not be written \(File exists\): no file is half-written"):
        store(tmp_path / "file" / "s")


def test_a_checkpoint_of_schema_1_loads() -> None:
    """fixtures/schema-1 was written by fixtures/make_schema_1.py at version 0.1.0 and is never written again."""
    level = Level(name="conv", channels=2, stride=2)
    spec = BackboneSpec(name="module/Conv2d", dim=2, pre_activation=True, levels=(level,))
    net = nn.Conv2d(3, 2, 2, 2)
    loaded, manifest = load_checkpoint(SCHEMA_1, backbone=Backbone.from_module(net, spec))
    assert torch.equal(loaded.net.weight, torch.arange(24.0).view(2, 3, 2, 2))
    assert loaded.spec == BackboneSpec(
        name="module/Conv2d",
        dim=2,
        arguments={"stride": 2},
        pre_activation=True,
        levels=(level,),
        input=InputSpec(size=8, crop_fraction=1.0, resize="squash", channel_order="bgr", value_range=(0.0, 255.0)),
        licence=Licence(spdx="CC-BY-NC-4.0", restrictions=("data: ImageNet terms",)),
    )
    assert manifest.teacher == Teacher(
        name="timm/resnet18", weights_sha256="0" * 64, licence=Licence(spdx="CC-BY-NC-4.0")
    )
    assert manifest.data == Data(count=12, fingerprint="1" * 64)
    assert manifest.made_by.config == {"epochs": 3, "view": {"kind": "KdepView"}}
    assert manifest.notes == ("2 tensors became float32 from float16",)
    assert manifest.heads["classifier"].classes == ("a", "b")
    assert torch.equal(load_heads(SCHEMA_1, "classifier")["weight"], torch.eye(2))
    assert manifest.weights.sha256 == weights_sha256(net)
