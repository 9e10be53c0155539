"""`stillroom-checkpoint`, as typed."""

import json
import re
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file

from stillroom.backbone import (
    Data,
    Head,
    Licence,
    Teacher,
    build_backbone,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from stillroom.backbone.cli import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `stillroom-checkpoint` with these words; exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stillroom-checkpoint", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as exited:
            code = int(exited.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def student(tmp_path: Path) -> Path:
    save_checkpoint(
        tmp_path / "student",
        build_backbone("cifar/resnet20", feature="before"),
        method="kdep",
        package="stillroom-distill",
        teacher=Teacher(name="timm/resnet18", weights_sha256="c0ffee" + "0" * 58, licence=Licence(spdx="MIT")),
        data=Data(count=1234, fingerprint="beef" + "0" * 60),
        heads={"classifier": (Head(kind="linear", in_dim=64, out_dim=10), {"weight": torch.ones(10, 64)})},
        notes=("something was converted",),
    )
    return tmp_path / "student"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A torchvision file of a thin MobileNet-V2 with 3 classes."""
    torch.save(torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=3).state_dict(), tmp_path / "in.pth")
    return tmp_path / "in.pth"


def import_words(file: Path, out: Path, *more: str) -> list[object]:
    words = ["import", file, "--source", "torchvision", "--backbone", "torchvision/mobilenet_v2", "--out", out]
    return [*words, "--arguments", "width_mult=0.25", *more]


def test_the_console_command_is_this_main() -> None:
    (entry,) = entry_points(group="console_scripts", name="stillroom-checkpoint")
    assert entry.load() is main


def test_inspect_prints_net_input_provenance_licence_and_files(command: Command, student: Path) -> None:
    code, out, err = command("inspect", student)
    assert (code, err) == (0, "")
    lines = {line[:10].strip(): line[10:] for line in out.splitlines()}
    assert lines["backbone"] == "cifar/resnet20"
    assert lines["pooled"] == "64-d, before the last activation"
    assert lines["levels"] == "layer1 16c/1, layer2 32c/2, layer3 64c/4"
    assert lines["input"].startswith("32 px, rgb, mean (0.485,")
    assert (lines["method"], lines["teacher"]) == ("kdep", "timm/resnet18 c0ffee000000")
    assert (lines["data"], lines["licence"]) == ("1234 images beef00000000", "NOASSERTION")
    assert lines["weights"] == "114 tensors, 269,072 parameters"
    assert (lines["heads"], lines["note"]) == ("classifier linear 64->10", "something was converted")
    assert lines["made by"].startswith("stillroom-distill ")
    assert "model.safetensors" in out and "heads.safetensors" in out


def test_verify_says_that_all_is_as_written(command: Command, student: Path) -> None:
    assert command("verify", student) == (0, f"{student}: 2 files and 114 tensors are unchanged\n", "")


@pytest.mark.parametrize("word", ["inspect", "verify"])
def test_an_altered_checkpoint_is_one_sentence_and_exit_code_2(command: Command, student: Path, word: str) -> None:
    content = bytearray((student / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (student / "model.safetensors").write_bytes(content)
    code, out, err = command(word, student)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .*model.safetensors does not have the hash in its manifest: .*\n", err)


def test_a_folder_that_is_no_checkpoint_is_one_sentence(command: Command, tmp_path: Path) -> None:
    assert command("inspect", tmp_path) == (
        2,
        "",
        f"error: {tmp_path} is not a checkpoint: it has no manifest.json\n",
    )


def test_import_makes_a_checkpoint_and_prints_it(command: Command, file: Path, tmp_path: Path) -> None:
    code, out, err = command(*import_words(file, tmp_path / "a"))
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == str(tmp_path / "a")
    assert "torchvision/mobilenet_v2 {'width_mult': 0.25}" in out
    manifest = verify_checkpoint(tmp_path / "a")
    assert manifest.backbone.arguments == {"width_mult": 0.25}
    assert manifest.made_by.command.startswith("stillroom-checkpoint import ")


def test_the_flags_of_import_reach_the_manifest(command: Command, file: Path, tmp_path: Path) -> None:
    flags = "--licence MIT --restrictions no-faces research --size 96 --crop-fraction 0.9 --channel-order bgr"
    numbers = "--mean 1 2 3 --std 4 5 6"
    code, _, err = command(*import_words(file, tmp_path / "a", *flags.split(), *numbers.split()))
    assert (code, err) == (0, "")
    spec = verify_checkpoint(tmp_path / "a").backbone
    assert spec.licence == Licence(spdx="MIT", restrictions=("no-faces", "research"))
    assert (spec.input.size, spec.input.crop_fraction, spec.input.channel_order) == (96, 0.9, "bgr")
    assert (spec.input.mean, spec.input.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.25", 0.25), ("3", 3), ("true", True), ("False", False), ("[1, 2]", [1, 2]), ("same", "same"), ("a=b", "a=b")],
)
def test_arguments_are_json_or_plain_words(text: str, value: object) -> None:
    from stillroom.backbone.cli import _key_value

    assert _key_value(f"key={text}") == ("key", value)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--arguments", "wide"), "argument 'wide' is not key=value"),
        (("--size", "0"), "input size is 0 px: it must be at least 1"),
        (("--backbone", "torchvision/mobilenet_v3"), "there is no backbone named 'torchvision/mobilenet_v3'"),
        (
            ("--backbone", "torchvision/resnet18", "--arguments"),
            "in.pth does not fit torchvision/resnet18: ",
        ),
    ],
)
def test_bad_input_to_import_is_one_sentence_and_leaves_nothing(
    command: Command, file: Path, tmp_path: Path, flags: tuple[str, ...], sentence: str
) -> None:
    code, out, err = command(*import_words(file, tmp_path / "a", *flags))
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and sentence in err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("flags", [("--channel-order", "grb"), ("--source", "keras")])
def test_a_word_that_is_no_choice_is_refused(
    command: Command, file: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    code, _, err = command(*import_words(file, tmp_path / "a", *flags))
    assert code == 2
    assert flags[1] in err
    assert not (tmp_path / "a").exists()


def test_export_writes_the_file_and_its_record(command: Command, file: Path, tmp_path: Path) -> None:
    command(*import_words(file, tmp_path / "a"))
    out_file = tmp_path / "out.safetensors"
    assert command("export", tmp_path / "a", "--to", "torchvision", "--out", out_file) == (0, f"{out_file}\n", "")
    state = torch.load(file, weights_only=True)
    exported = load_file(out_file)
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[key], state[key]) for key in state)
    assert json.loads((tmp_path / "out.safetensors.json").read_text())["net"] == "torchvision/mobilenet_v2"


def test_export_refuses_in_one_sentence(command: Command, student: Path, tmp_path: Path) -> None:
    words = ["export", student, "--to", "timm", "--out", tmp_path / "x.pth"]
    assert command(*words, "--require-permissive") == (
        2,
        "",
        f"error: checkpoint {student} is not under a permissive licence (licence NOASSERTION): not exported\n",
    )
    code, _, err = command(*words)
    assert code == 2 and "cifar/resnet20 has no counterpart with the same layers in timm" in err
    assert not (tmp_path / "x.pth").exists()


def test_an_imported_checkpoint_can_be_trained_on(command: Command, file: Path, tmp_path: Path) -> None:
    command(*import_words(file, tmp_path / "a"))
    backbone, _ = load_checkpoint(tmp_path / "a")
    backbone.train()(torch.randn(2, 3, 64, 64)).pooled.sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.net.parameters())


@pytest.mark.parametrize("words", [("--help",), ("inspect", "--help"), ("import", "--help"), ("export", "--help")])
def test_help_is_given(command: Command, words: tuple[str, ...]) -> None:
    code, out, _ = command(*words)
    assert code == 0 and "stillroom-checkpoint" in out
