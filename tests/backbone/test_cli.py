"""`stillroom-checkpoint`, as typed."""

import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
import torch

from stillroom.backbone import Data, Head, Licence, Teacher, build_backbone, cli, save_checkpoint

Command = Callable[..., tuple[int, str, str]]


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


def test_the_console_command_is_this_main() -> None:
    (entry,) = entry_points(group="console_scripts", name="stillroom-checkpoint")
    assert entry.load() is cli.main


@pytest.mark.parametrize("word", ["import", "export"])
def test_a_command_of_a_package_that_is_not_installed_is_refused_with_its_name(
    checkpoint_command: Command, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setattr(cli, "entry_points", lambda group: ())
    sentence = (
        f"error: {word} is a command of stillroom-convert, which is not installed: install it beside this package\n"
    )
    assert checkpoint_command(word, "resnet18.pth") == (2, "", sentence)


def test_another_package_adds_commands_and_replaces_none(monkeypatch: pytest.MonkeyPatch) -> None:
    added = [EntryPoint(name, "builtins:print", cli.GROUP) for name in ("convert", "verify")]
    monkeypatch.setattr(cli, "entry_points", lambda group: added)
    assert cli.installed_commands() == {"convert": print, "inspect": cli.Inspect, "verify": cli.Verify}


def test_inspect_prints_net_input_provenance_licence_and_files(checkpoint_command: Command, student: Path) -> None:
    code, out, err = checkpoint_command("inspect", student)
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


def test_verify_says_that_all_is_as_written(checkpoint_command: Command, student: Path) -> None:
    assert checkpoint_command("verify", student) == (0, f"{student}: 2 files and 114 tensors are unchanged\n", "")


@pytest.mark.parametrize("word", ["inspect", "verify"])
def test_an_altered_checkpoint_is_one_sentence_and_exit_code_2(
    checkpoint_command: Command, student: Path, word: str
) -> None:
    content = bytearray((student / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (student / "model.safetensors").write_bytes(content)
    code, out, err = checkpoint_command(word, student)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .*model.safetensors does not have the hash in its manifest: .*\n", err)


def test_a_folder_that_is_no_checkpoint_is_one_sentence(checkpoint_command: Command, tmp_path: Path) -> None:
    assert checkpoint_command("inspect", tmp_path) == (
        2,
        "",
        f"error: {tmp_path} is not a checkpoint: it has no manifest.json\n",
    )
