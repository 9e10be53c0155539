"""How every command ends."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from stillroom.backbone import CheckpointError, InputSpec
from stillroom.backbone.checks import at_least
from stillroom.backbone.command import parse_command, report_errors


def ending(error: BaseException | None) -> Callable[[], None]:
    def main() -> None:
        print("working")
        if error is not None:
            raise error

    return report_errors(main)


@pytest.mark.parametrize("error", [ValueError("size is 0"), CheckpointError("size is 0")])
def test_bad_input_is_one_sentence_on_stderr_and_exit_code_2(
    error: ValueError, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        ending(error)()
    assert exited.value.code == 2
    assert capsys.readouterr() == ("working\n", "error: size is 0\n")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "Permission denied", "/a/b"), "/a/b: Permission denied; no file is half-written"),
        (OSError(28, "No space left on device"), "No space left on device; no file is half-written"),
        (OSError("cannot seek"), "cannot seek; no file is half-written"),
    ],
)
def test_what_the_system_refuses_is_one_sentence_too(
    error: OSError, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        ending(error)()
    assert exited.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_an_interrupt_is_one_word_and_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        ending(KeyboardInterrupt())()
    assert exited.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_our_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(AssertionError, match="cannot be"):
        ending(AssertionError("cannot be"))()


def test_a_sentence_of_stillroom_is_printed_wherever_the_command_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report_errors(lambda: InputSpec(size=0))()
    assert capsys.readouterr().err == "error: input size is 0 px: it must be at least 1\n"


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        (lambda: json.loads("{"), ValueError),  # raised by a library
        (lambda: torch.nn.Conv2d(3, 4, 1, groups=3), ValueError),
        (lambda: int("x"), ValueError),  # raised by a compiled function that our own frame called
        (lambda: Path("/nowhere/file").read_text(), FileNotFoundError),
    ],
    ids=["library", "torch", "compiled", "missing file"],
)
def test_an_error_that_no_raise_of_ours_made_keeps_its_traceback(
    mistake: Callable[[], object], error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        mistake()

    with pytest.raises(error):
        report_errors(main)()
    assert capsys.readouterr().err == ""


class Broken(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise CheckpointError("of a worker")


def test_an_error_of_ours_that_torch_raises_again_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report_errors(lambda: list(DataLoader(Broken(), num_workers=1)))()
    assert "CheckpointError: of a worker" in capsys.readouterr().err


def test_the_scripts_beside_a_command_are_ours_too(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text("def work():\n    raise ValueError('--size is 0')\n")
    script = tmp_path / "tool.py"
    script.write_text(
        "from part import work\nfrom stillroom.backbone.command import report_errors\nreport_errors(lambda: work())()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: --size is 0\n")


@dataclass(frozen=True)
class Inner:
    size: int = 1

    def __post_init__(self) -> None:
        at_least(self, 1, "size", prefix="inner.")


@dataclass(frozen=True)
class Outer:
    inner: Inner
    count: int = 1


@pytest.mark.parametrize("kind", [Outer, Outer | Inner], ids=["class", "union"])
def test_a_value_that_a_nested_config_refuses_is_one_sentence(
    kind: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["command", *(["outer"] if kind is not Outer else []), "--inner.size", "0"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as exited:
        report_errors(lambda: parse_command(kind))()
    assert exited.value.code == 2
    assert capsys.readouterr().err == "error: --inner.size is 0: it must be at least 1\n"


def test_a_command_line_that_tyro_refuses_keeps_its_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["command", "--count", "many"])
    with pytest.raises(SystemExit) as exited:
        report_errors(lambda: parse_command(Outer))()
    assert exited.value.code == 2
    assert "--count" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["command", "--count", "2"])
    assert parse_command(Outer) == Outer(Inner(), 2)


def test_a_good_end_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(None)() is None
    assert capsys.readouterr() == ("working\n", "")
