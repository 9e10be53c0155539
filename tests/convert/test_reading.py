"""What may lie in a file beside tensors, and which of a file's weights are taken."""

import argparse
import collections
import functools
import os
import pathlib
import pickle
import subprocess
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from tests.convert.conftest import trained, write_pth
from torch import Tensor, nn

from stillroom.backbone import CheckpointError
from stillroom.convert.importing import import_file
from stillroom.convert.reading import HARMLESS, Placeholder, choose_weights, keep_tensors, read_state

ONE = {"a.weight": torch.ones(2)}


HARMLESS_VALUES = {
    "namespace": argparse.Namespace(lr=0.1, betas=(0.9, 0.999), nested=argparse.Namespace(out=Path("runs") / "a")),
    "paths": [pathlib.PurePosixPath("/a/b"), pathlib.PureWindowsPath("c:/a"), Path("a")],
    "numpy numbers": [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True), np.str_("x")],
    "numpy dtypes": [np.dtype("float32"), np.dtype(np.int64), np.float32],
    "ordered dict": OrderedDict(a=1),
    "defaultdicts": [defaultdict(dict, {0: {"step": 1}}), defaultdict(list, a=[1]), defaultdict(float), defaultdict()],
    "torch's own": [torch.float32, torch.device("cpu"), torch.Size([1]), collections.Counter("ab"), {1, 2}, 1j],
}


@pytest.mark.parametrize("kind", HARMLESS_VALUES)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_harmless_values_beside_the_tensors_do_not_hinder(tmp_path: Path, kind: str, zipped: bool) -> None:
    content = {"args": HARMLESS_VALUES[kind], "state_dict": OrderedDict(ONE), "epoch": 3}
    torch.save(content, tmp_path / "in.pth", _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_state(tmp_path / "in.pth")["a.weight"], torch.ones(2))


def test_a_path_of_another_system_does_not_hinder(tmp_path: Path) -> None:
    file = write_pth(tmp_path / "in.pth", {"out": Path("a"), "model": ONE})
    for name in (b"pathlib\nWindowsPath", b"pathlib._local\nPosixPath"):  # Windows; Python 3.13
        torch.save({"out": Path("a"), "model": ONE}, file, _use_new_zipfile_serialization=False)
        content = file.read_bytes()
        assert b"pathlib\nPosixPath" in content
        file.write_bytes(content.replace(b"pathlib\nPosixPath", name))
        assert read_state(file).keys() == ONE.keys()


class Calls:
    """A pickle that calls a function when it is opened."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


HOSTILE = {
    "os.system": (os.system, "touch {mark}"),
    "subprocess.Popen": (subprocess.Popen, ["touch", "{mark}"]),
    "functools.partial": (functools.partial, print),
    "builtins.eval": (eval, "open('{mark}', 'w')"),
    "builtins.exec": (exec, "open('{mark}', 'w')"),
    "builtins.getattr": (getattr, "a", "upper"),
    "builtins.__import__": (__import__, "os"),
    "pathlib.Path.touch": (pathlib.Path.touch, pathlib.Path("{mark}")),
    "collections.deque": (collections.deque, [1]),
    "collections.namedtuple": (collections.namedtuple, "a", "b"),
    "pickle.loads": (pickle.loads, b"N."),
    "torch.load": (torch.load, "{mark}"),
    "a class of one's own": (Placeholder,),
    "numpy.load": (np.load, "{mark}"),
}


def _filled(argument: Any, mark: Path) -> Any:
    if isinstance(argument, list):
        return [_filled(entry, mark) for entry in argument]
    return argument.replace("{mark}", str(mark)) if isinstance(argument, str) else argument


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["beside", "in args", "as a factory"])
def test_nothing_else_is_loaded_and_the_refusal_is_one_sentence_with_a_remedy(
    tmp_path: Path, name: str, place: str
) -> None:
    mark = tmp_path / "was-run"
    function, *arguments = HOSTILE[name]
    call = Calls(function, *(_filled(argument, mark) for argument in arguments))
    beside = {"beside": call, "in args": argparse.Namespace(a=call), "as a factory": Calls(defaultdict, function)}
    file = write_pth(tmp_path / "in.pth", {"x": beside[place], "model": ONE})
    with pytest.raises(CheckpointError) as caught:
        read_state(file)
    assert not mark.exists()
    sentence = str(caught.value)
    assert sentence.startswith(f"{file} holds more than tensors and is not loaded (weights_only=True): it names ")
    assert "\n" not in sentence and sentence.endswith("torch.save(model.state_dict(), FILE), and import that file")


def test_nets_and_arrays_are_refused_by_name(tmp_path: Path) -> None:
    for content, name in ((nn.Linear(1, 1), "torch.nn.modules.linear.Linear"), (np.ones(2), "numpy.*_reconstruct")):
        file = write_pth(tmp_path / "in.pth", {"model": content})
        with pytest.raises(CheckpointError, match=rf"is not loaded \(weights_only=True\): it names {name}; save"):
            read_state(file)


def test_what_is_allowed_is_a_short_list_that_runs_no_code_of_its_own() -> None:
    assert {kind for kind, name in HARMLESS if not name.startswith("builtins.") and "defaultdict" not in name} == {
        Placeholder
    }
    assert {name.partition(".")[0] for _, name in HARMLESS} == {
        "argparse", "builtins", "collections", "numpy", "pathlib",
    }  # fmt: skip
    assert {kind for kind, name in HARMLESS if name.startswith("builtins.")} == {
        bool, dict, float, int, list, str, tuple,
    }  # fmt: skip


def test_what_import_allows_is_allowed_to_nobody_else(tmp_path: Path) -> None:
    file = write_pth(tmp_path / "in.pth", {"args": argparse.Namespace(), "model": ONE})
    read_state(file)
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(file, weights_only=True)


def test_a_file_that_holds_itself_is_no_state_dict(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    with pytest.raises(CheckpointError, match="is not a state dict: expected tensors by name"):
        read_state(write_pth(tmp_path / "in.pth", content))


RAW, EMA = {"conv.weight": torch.zeros(2)}, {"conv.weight": torch.ones(2)}


def _prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


TRAINING_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "timm": ({"state_dict": RAW, "state_dict_ema": EMA, "args": argparse.Namespace(model="x")}, "state_dict_ema"),
    "torchvision's references": (
        {"model": RAW, "model_ema": _prefixed("module.", EMA) | {"n_averaged": torch.tensor(3)}, "epoch": 1},
        "model_ema",
    ),
    "DeiT": ({"model": RAW, "model_ema": EMA, "scaler": {}}, "model_ema"),
    "wrapped once more": ({"model": {"state_dict": RAW}, "ema": {"module": EMA, "decay": 0.9}}, "ema"),
    "DINO": ({"student": RAW, "teacher": EMA, "args": argparse.Namespace()}, "teacher"),
    "Lightning, a module": (
        {"state_dict": _prefixed("model.", RAW) | _prefixed("ema_model.module.", EMA)},
        "ema_model.",
    ),
    "Lightning, of wrapped nets": (
        {"state_dict": _prefixed("net._orig_mod.", RAW) | _prefixed("net_ema._orig_mod.", EMA)},
        "net_ema.",
    ),
    **{
        name: ({"state_dict": RAW, name: EMA, "ema_decay": 0.9}, name)
        for name in ("averaged_model", "swa_model", "teacher_ema", "ema_weights", "model_ema_2")
    },
    "BasicSR": ({"params": RAW, "params_ema": EMA}, "params_ema"),
    "a callback of Lightning": (
        {"state_dict": RAW, "callbacks": {"Checkpoint": {"best": 1}, "EMA{}": {"ema_state_dict": EMA}}},
        "callbacks.EMA{}.ema_state_dict",
    ),
    "Lightly's MoCo and BYOL": (
        {"state_dict": _prefixed("backbone.", RAW) | _prefixed("backbone_momentum.", EMA)},
        "backbone_momentum.",
    ),
    "Lightly's DINO": (
        {"state_dict": _prefixed("student_backbone.", RAW) | _prefixed("teacher_backbone.", EMA)},
        "teacher_backbone.",
    ),
    "solo-learn": (
        {"state_dict": _prefixed("backbone.", RAW) | _prefixed("momentum_backbone.", EMA)},
        "momentum_backbone.",
    ),
    "Lightning's WeightAveraging": (
        {"state_dict": EMA, "current_model_state": RAW, "averaging_state": {"n_averaged": torch.tensor(3)}},
        "state_dict",
    ),
}


def _only(state: dict[str, Tensor]) -> Tensor:
    [tensor] = [tensor for key, tensor in state.items() if key.endswith("conv.weight")]
    return tensor


@pytest.mark.parametrize("kind", TRAINING_FILES)
def test_the_ema_is_taken_unless_the_raw_weights_are_asked_for(tmp_path: Path, kind: str) -> None:
    file = write_pth(tmp_path / "in.pth", TRAINING_FILES[kind][0])
    assert torch.equal(_only(read_state(file)), torch.ones(2))
    assert torch.equal(_only(read_state(file, "ema")), torch.ones(2))
    assert torch.equal(_only(read_state(file, "raw")), torch.zeros(2))
    notes = choose_weights(TRAINING_FILES[kind][0], None, "f")[1]
    assert notes == (f"the EMA {TRAINING_FILES[kind][1]} was taken, not the raw weights beside it",)


def test_numbers_words_and_none_beside_the_tensors_are_left_out_with_a_note(tmp_path: Path) -> None:
    state = {"_extra_state": None, **ONE, "epoch": 3, "arch": "resnet"}
    tensors, notes = keep_tensors(state, "f")
    assert tensors == ONE and notes == ("3 entries that are not tensors left out: _extra_state, epoch, arch",)
    assert read_state(write_pth(tmp_path / "in.pth", {"model": state})).keys() == ONE.keys()


@pytest.mark.filterwarnings("ignore")  # torch's, about its own old kinds of tensors
@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (
            lambda: torch.eye(3).to_sparse(),
            "a.weight is a tensor that is torch.sparse_coo on cpu, expected a dense one: save",
        ),
        (
            lambda: torch.ones(3, device="meta"),
            "a.weight is a tensor that is torch.strided on meta, expected a dense one",
        ),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), "a.weight is a tensor that is quanti"),
        (
            lambda: torch.zeros(1).half().expand(40_000, 40_000),
            r"states 1,600,000,000 numbers and holds 1: save a.weight\.co",
        ),
    ],
)
def test_tensors_that_are_not_dense_numbers_are_refused_by_name(
    tmp_path: Path, tensor: Callable[[], Tensor], sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        read_state(write_pth(tmp_path / "in.pth", {"a.weight": tensor()}))


def test_weights_that_a_file_does_not_hold_are_refused(tmp_path: Path) -> None:
    for empty in ({}, {"state_dict_ema": None}, {"model_ema": {}}):
        file = write_pth(tmp_path / "in.pth", {"state_dict": RAW, **empty})
        assert torch.equal(_only(read_state(file, "raw")), torch.zeros(2))
        with pytest.raises(CheckpointError, match="holds no EMA: leave --weights out, or pass --weights raw"):
            read_state(file, "ema")
    file = write_pth(tmp_path / "in.pth", {"model_ema": EMA})
    with pytest.raises(CheckpointError, match="holds only the EMA model_ema: leave --weights out, or"):
        read_state(file, "raw")


@pytest.fixture
def nets() -> list[dict[str, Tensor]]:
    """Two thin MobileNet-V2, with the raw weights and with the EMA."""
    torch.manual_seed(0)
    return [trained(torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=3)).state_dict() for _ in range(2)]


@pytest.mark.parametrize(
    ("weights", "index", "note"),
    [
        (None, 1, "the EMA model_ema was taken, not the raw weights beside it"),
        ("raw", 0, "the raw weights were taken, not the EMA model_ema beside them"),
    ],
)
def test_a_training_file_of_torchvisions_references_comes_in_to_the_bit(
    tmp_path: Path, nets: list[dict[str, Tensor]], weights: Any, index: int, note: str
) -> None:
    raw, ema = nets
    content = {
        "model": raw,
        "optimizer": {"state": defaultdict(dict), "param_groups": [{"lr": np.float64(0.1)}]},
        "lr_scheduler": {"milestones": collections.Counter([30])},
        "epoch": 3,
        "args": argparse.Namespace(output_dir=Path("runs"), device=torch.device("cpu")),
        "model_ema": {"n_averaged": torch.tensor(7), **_prefixed("module.", ema)},
    }
    manifest = import_file(
        write_pth(tmp_path / "in.pth", content),
        tmp_path / "a",
        source="torchvision",
        backbone="torchvision/mobilenet_v2",
        arguments={"width_mult": 0.25},
        weights=weights,
    )
    assert note in manifest.notes
    assert ("prefixes stripped from keys: module. (314 tensors)" in manifest.notes) == (weights is None)
    loaded = load_file(tmp_path / "a" / "model.safetensors")
    assert all(torch.equal(tensor, nets[index][key]) for key, tensor in loaded.items())


def test_a_lightning_file_comes_in_without_its_heads_and_losses(tmp_path: Path, nets: list[dict[str, Tensor]]) -> None:
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {
            **_prefixed("model._orig_mod.backbone.", nets[0]),
            "head.weight": torch.ones(5, 1280),
            "criterion.weight": torch.ones(5),
        },
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.5), "dirpath": Path("runs")}},
        "hyper_parameters": {"args": argparse.Namespace(lr=np.float32(0.1)), "out": Path("runs")},
    }
    manifest = import_file(
        write_pth(tmp_path / "in.ckpt", content),
        tmp_path / "a",
        source="torchvision",
        backbone="torchvision/mobilenet_v2",
        arguments={"width_mult": 0.25},
    )
    assert manifest.notes[0] == "prefixes stripped from keys: model._orig_mod.backbone. (314 tensors)"
    assert manifest.notes[1] == "2 tensors left out by rule, the first is head.weight"
    loaded = load_file(tmp_path / "a" / "model.safetensors")
    assert all(torch.equal(tensor, nets[0][key]) for key, tensor in loaded.items())
    assert manifest.heads["classifier"].out_dim == 3


def test_an_ema_that_does_not_fit_names_the_flag(tmp_path: Path, nets: list[dict[str, Tensor]]) -> None:
    file = write_pth(tmp_path / "in.pth", {"model": nets[0], "model_ema": EMA})
    sentence = r"in\.pth \(the EMA model_ema was taken, .*; --weights chooses\) does not fit torchvision/mobilenet_v2"
    with pytest.raises(CheckpointError, match=sentence):
        import_file(file, tmp_path / "a", source="torchvision", backbone="torchvision/mobilenet_v2")


def test_an_ema_that_is_not_tensors_by_name_is_said(tmp_path: Path, nets: list[dict[str, Tensor]]) -> None:
    file = write_pth(tmp_path / "in.pth", {"model": nets[0], "ema": {"shadow_params": [torch.ones(1)]}})
    manifest = import_file(
        file,
        tmp_path / "a",
        source="torchvision",
        backbone="torchvision/mobilenet_v2",
        arguments={"width_mult": 0.25},
    )
    sentence = "the raw weights were taken, not the EMA ema beside them, which are not tensors by name"
    assert manifest.notes[0] == sentence


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["features.0.1.running_var", "classifier.1.weight"])
def test_weights_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, nets: list[dict[str, Tensor]], key: str, value: float
) -> None:
    nets[0][key].view(-1)[1] = value
    file = write_pth(tmp_path / "in.pth", nets[0])
    with pytest.raises(CheckpointError, match=rf"in\.pth: 1 tensors hold NaN or infinite values, the first is {key}"):
        import_file(
            file,
            tmp_path / "a",
            source="torchvision",
            backbone="torchvision/mobilenet_v2",
            arguments={"width_mult": 0.25},
        )
    assert not (tmp_path / "a").exists()


def test_a_first_layer_of_other_channels_is_refused(tmp_path: Path, nets: list[dict[str, Tensor]]) -> None:
    nets[0]["features.0.0.weight"] = torch.ones(8, 1, 3, 3)
    with pytest.raises(CheckpointError, match=r"features\.0\.0\.weight takes 1 input channels; every net here takes 3"):
        import_file(
            write_pth(tmp_path / "in.pth", nets[0]),
            tmp_path / "a",
            source="torchvision",
            backbone="torchvision/mobilenet_v2",
            arguments={"width_mult": 0.25},
        )
