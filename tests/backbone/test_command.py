"""How every command ends."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.utils.data import DataLoader

from stillroom.backbone import CheckpointError, InputSpec
from stillroom.backbone.checks import at_least
from stillroom.backbone.command import DEBUG, DEBUG_HELP, parse_command, report_errors

FULL = (
    "No space left on device; no file is half-written: free some space there, then repeat the command, or `resume` the "
    "run"
)


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
        (OSError(28, "No space left on device"), FULL),
        (OSError(122, "Disk quota exceeded", "/a"), FULL.replace("No space left on device", "/a: Disk quota exceeded")),
        (OSError("cannot seek"), "cannot seek; no file is half-written"),
        (
            FileNotFoundError(2, "No such file or directory", "/a"),
            "/a: No such file or directory; no file is half-written",
        ),
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


def read_log(line: str) -> str:
    """The log that the line about an unexpected error names."""
    named = re.search(r"please report this with (\S+), which holds the traceback \(--debug prints it\)\n$", line)
    assert named, line
    return Path(named[1]).read_text()


def test_a_mistake_of_ours_is_one_line_that_asks_for_a_report_and_names_the_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["stillroom-x", "--data", "a b"])
    with pytest.raises(SystemExit) as exited:
        ending(AssertionError("cannot be\nat all"))()
    assert exited.value.code == 1
    line = capsys.readouterr().err
    assert line.startswith("error: unexpected AssertionError: cannot be; please report") and line.count("\n") == 1
    log = read_log(line)
    assert "stillroom-x --data 'a b'" in log and "raise error\nAssertionError: cannot be\nat all" in log
    assert "torch " in log and "stillroom-backbone " in log


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("size is 0")], ids=["bug", "sentence"])
def test_debug_prints_the_traceback_of_every_error_too(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEBUG, "")  # restored at the end
    monkeypatch.setattr(sys, "argv", ["stillroom-x", "--debug", "--size", "0"])
    with pytest.raises(SystemExit):
        ending(error)()
    assert sys.argv == ["stillroom-x", "--size", "0"]  # before anybody parses it
    for _ in ("by the flag", "by the environment, which it has set for further processes"):
        printed = capsys.readouterr().err
        assert printed.startswith("Traceback (most recent call last):") and "\nerror: " in printed
        with pytest.raises(SystemExit):
            ending(error)()


def test_each_process_that_fails_has_a_log_of_its_own_and_answers_torchrun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "reply.json"))
    with pytest.raises(SystemExit):
        ending(KeyError("x"))()
    line = capsys.readouterr().err
    assert "/error-rank1.log, which holds" in line
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=1, error_file=str(tmp_path / "reply.json"))
    assert f"error: {failure.message}\n" == line
    (tmp_path / "reply.json").unlink()
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "reply.json" / "no" / "folder"))
    (tmp_path / "reply.json").write_text("")
    with pytest.raises(SystemExit) as exited:
        ending(ValueError("size is 0"))()
    assert exited.value.code == 2


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
    ],
    ids=["library", "torch", "compiled"],
)
def test_an_error_that_no_raise_of_ours_made_is_unexpected_and_its_traceback_is_kept(
    mistake: Callable[[], object], error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        mistake()

    with pytest.raises(SystemExit) as exited:
        report_errors(main)()
    assert exited.value.code == 1
    assert re.search(rf"{error.__name__}|JSONDecodeError", read_log(capsys.readouterr().err))


class Broken(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise CheckpointError("of a worker")


class Mistaken(Broken):
    def __getitem__(self, index: int) -> None:
        {}["x"]


def test_a_bug_in_a_loaders_worker_is_one_line_with_the_workers_traceback_in_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        report_errors(lambda: list(DataLoader(Mistaken(), num_workers=1)))()
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and '{}["x"]' in read_log(line)


class Killed(Broken):
    def __getitem__(self, index: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL if index == 0 else signal.SIGBUS)


def test_an_error_of_ours_that_torch_raises_again_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report_errors(lambda: list(DataLoader(Broken(), num_workers=1)))()
    assert capsys.readouterr().err == "error: of a worker\n"


@pytest.mark.parametrize("index", [0, 1], ids=["killed", "bus error"])
def test_a_loaders_worker_that_dies_is_a_sentence_about_shared_memory_and_workers(
    index: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        report_errors(lambda: list(DataLoader(Killed(), sampler=[index], num_workers=1)))()
    assert exited.value.code == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.strip("\0").startswith("error: DataLoader worker (pid")
    assert "; usually shared memory (/dev/shm) or memory is full: pass fewer --workers (0: none), or" in last


class FullDisk(io.RawIOBase):
    """A file with room for 2,000 bytes."""

    def __init__(self) -> None:
        self.room = 2000

    def write(self, content: Any) -> int:
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(content)


@pytest.mark.parametrize(
    ("shortage", "sentence"),
    [
        (
            lambda: torch.zeros(1 << 50),
            r"allocate memory.*; memory is full: pass a smaller --batch-size, a smaller imag",
        ),
        (lambda: np.zeros(1 << 50), "Unable to allocate .*; memory is full: pass a smaller --batch-size"),
        (lambda: bytearray(1 << 62), "MemoryError; memory is full: pass a smaller --batch-size"),
        (
            lambda: import_module("absent"),
            "No module named 'absent': a package is missing or damaged, install it again",
        ),
        (
            lambda: torch.nn.BatchNorm1d(2)(torch.zeros(1, 2)),
            "Expected more than 1 value per channel .*; batch norm needs two images: pass a larger --batch-size",
        ),
        (
            lambda: torch.save(torch.zeros(1000), FullDisk()),
            "unexpected pos .*; no file is half-written: free",
        ),
    ],
    ids=["torch", "numpy", "python", "package", "batch norm", "torch.save"],
)
def test_what_a_machine_or_a_batch_lacks_is_a_sentence_that_says_what_to_change(
    shortage: Callable[[], object], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        report_errors(lambda: shortage())()
    assert exited.value.code == 2
    assert re.search(sentence, capsys.readouterr().err)


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
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit):
        parse_command(Outer, description="Count.")
    assert f"Count. {DEBUG_HELP}" in " ".join(capsys.readouterr().out.replace("\n", " ").split())
    monkeypatch.setattr(sys, "argv", ["command", "--count", "2"])
    assert parse_command(Outer) == Outer(Inner(), 2)


def test_a_good_end_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(None)() is None
    assert capsys.readouterr() == ("working\n", "")
