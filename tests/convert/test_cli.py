"""`stillroom-checkpoint import | export`, as typed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file

from stillroom.backbone import Licence, load_checkpoint, verify_checkpoint

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A torchvision file of a thin MobileNet-V2 with 3 classes."""
    torch.save(torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=3).state_dict(), tmp_path / "in.pth")
    return tmp_path / "in.pth"


def import_words(file: Path, out: Path, *more: str) -> list[object]:
    words = ["import", file, "--source", "torchvision", "--backbone", "torchvision/mobilenet_v2", "--out", out]
    return [*words, "--arguments", "width_mult=0.25", *more]


def test_import_makes_a_checkpoint_and_prints_it(checkpoint_command: Command, file: Path, tmp_path: Path) -> None:
    code, out, err = checkpoint_command(*import_words(file, tmp_path / "a"))
    assert code == 0 and [line[:6] for line in err.splitlines()] == ["note: "]
    assert out.splitlines()[-1] == str(tmp_path / "a")
    assert "torchvision/mobilenet_v2 {'width_mult': 0.25}" in out
    manifest = verify_checkpoint(tmp_path / "a")
    assert manifest.backbone.arguments == {"width_mult": 0.25}
    assert manifest.made_by.command.startswith("stillroom-checkpoint import ")


def test_the_flags_of_import_reach_the_manifest(checkpoint_command: Command, file: Path, tmp_path: Path) -> None:
    flags = "--licence MIT --restrictions no-faces research --size 96 --crop-fraction 0.9 --channel-order bgr"
    numbers = "--mean 1 2 3 --std 4 5 6 --value-range 0 255 --resize squash --interpolation bicubic --antialias False"
    code, out, err = checkpoint_command(*import_words(file, tmp_path / "a", *flags.split(), *numbers.split()))
    assert (code, err) == (0, "")  # the whole input is stated: nothing was assumed
    whole = (
        "96 px, bgr, mean (1.0, 2.0, 3.0), std (4.0, 5.0, 6.0), values 0 to 255, crop fraction 0.9 squashed to 96 px, "
        "bicubic, not antialiased"
    )
    assert f"input     {whole}\n" in out
    spec = verify_checkpoint(tmp_path / "a").backbone
    assert f"input     {whole}\n" in checkpoint_command("inspect", tmp_path / "a")[1]
    assert spec.licence == Licence(spdx="MIT", restrictions=("no-faces", "research"))
    assert (spec.input.size, spec.input.crop_fraction, spec.input.channel_order) == (96, 0.9, "bgr")
    assert (spec.input.mean, spec.input.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.25", 0.25), ("3", 3), ("true", True), ("False", False), ("[1, 2]", [1, 2]), ("same", "same"), ("a=b", "a=b")],
)
def test_arguments_are_json_or_plain_words(text: str, value: object) -> None:
    from stillroom.convert.cli import _key_value

    assert _key_value(f"key={text}") == ("key", value)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--arguments", "wide"), "argument 'wide' is not key=value"),
        (("--size", "0"), "input size is 0 px: it must be at least 1"),
        (("--size", "1", "--arguments", "norm_layer=a"), "torchvision/mobilenet_v2 cannot be built with the arguments"),
        (("--value-range", "1", "0"), "input values are (1.0, 0.0): black must be below white"),
        (("--mean", "nan", "0", "0"), "all must be finite"),
        (("--arguments", "wide=2"), "torchvision/mobilenet_v2 has no constructor argument 'wide': those it takes"),
        (("--weights", "ema"), "in.pth holds no EMA: leave --weights out, or pass --weights raw"),
        (("--backbone", "torchvision/mobilenet_v3"), "there is no backbone named 'torchvision/mobilenet_v3'"),
        (
            ("--backbone", "torchvision/resnet18", "--arguments"),
            "in.pth does not fit torchvision/resnet18: ",
        ),
    ],
)
def test_bad_input_to_import_is_one_sentence_and_leaves_nothing(
    checkpoint_command: Command, file: Path, tmp_path: Path, flags: tuple[str, ...], sentence: str
) -> None:
    code, out, err = checkpoint_command(*import_words(file, tmp_path / "a", *flags))
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and sentence in err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("flags", [("--channel-order", "grb"), ("--source", "keras")])
def test_a_word_that_is_no_choice_is_refused(
    checkpoint_command: Command, file: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    code, _, err = checkpoint_command(*import_words(file, tmp_path / "a", *flags))
    assert code == 2
    assert flags[1] in err
    assert not (tmp_path / "a").exists()


def test_export_writes_the_file_and_its_record(checkpoint_command: Command, file: Path, tmp_path: Path) -> None:
    checkpoint_command(*import_words(file, tmp_path / "a"))
    out_file = tmp_path / "out.safetensors"
    assert checkpoint_command("export", tmp_path / "a", "--to", "torchvision", "--out", out_file) == (
        0,
        f"{out_file}\n",
        "",
    )
    state = torch.load(file, weights_only=True)
    exported = load_file(out_file)
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[key], state[key]) for key in state)
    assert json.loads((tmp_path / "out.safetensors.json").read_text())["net"] == "torchvision/mobilenet_v2"


def test_export_refuses_in_one_sentence(checkpoint_command: Command, small_student: Path, tmp_path: Path) -> None:
    words = ["export", small_student, "--to", "timm", "--out", tmp_path / "x.pth"]
    assert checkpoint_command(*words, "--require-permissive") == (
        2,
        "",
        f"error: checkpoint {small_student} is not under a permissive licence (licence NOASSERTION): not exported\n",
    )
    code, _, err = checkpoint_command(*words)
    assert code == 2 and "cifar/resnet20 has no counterpart with the same layers in timm" in err
    assert not (tmp_path / "x.pth").exists()


def test_what_was_assumed_of_the_input_is_said_with_the_flags_for_another(
    checkpoint_command: Command, file: Path, tmp_path: Path
) -> None:
    code, out, err = checkpoint_command(*import_words(file, tmp_path / "a", "--size", "96", "--mean", "0", "0", "0"))
    assert code == 0
    [line] = err.splitlines()
    assert line.startswith(
        "note: the file does not state its input, so crop_fraction, resize, interpolation, antialias, std, "
        "channel_order, value_range are assumed to be what torchvision publishes for mobilenet_v2: 96 px, rgb, "
        "mean (0.0, 0.0, 0.0), std (0.229, 0.224, 0.225), values 0 to 1, crop fraction 0.9655 of the short side at "
    )
    assert line.endswith(
        "pass --crop-fraction, --resize, --interpolation, --antialias, --std, --channel-order, --value-range"
    )
    [note] = verify_checkpoint(tmp_path / "a").notes
    assert line == f"note: {note}" and note in out


def test_a_source_of_several_nets_asks_for_the_net(checkpoint_command: Command, file: Path, tmp_path: Path) -> None:
    code, _, err = checkpoint_command("import", file, "--source", "moco", "--out", tmp_path / "a")
    assert code == 2
    assert err == ("error: source moco holds several nets: pass --backbone, for instance torchvision/resnet50\n")


def test_an_imported_checkpoint_can_be_trained_on(checkpoint_command: Command, file: Path, tmp_path: Path) -> None:
    checkpoint_command(*import_words(file, tmp_path / "a"))
    backbone, _ = load_checkpoint(tmp_path / "a")
    backbone.train()(torch.randn(2, 3, 64, 64)).pooled.sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.net.parameters())


@pytest.mark.parametrize("words", [("--help",), ("import", "--help"), ("export", "--help")])
def test_help_is_given(checkpoint_command: Command, words: tuple[str, ...]) -> None:
    code, out, _ = checkpoint_command(*words)
    assert code == 0 and "stillroom-checkpoint" in out
