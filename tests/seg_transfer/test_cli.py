"""The command line, and what it says where MMSegmentation is missing or old."""

import os
import pwd
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
from platformdirs import user_cache_path

from commands import run_main
from stillroom.runs import read_results
from stillroom.seg_transfer import cli, framework
from stillroom.seg_transfer.presets import PRESETS

run_cli = partial(run_main, cli.main)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_explains_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, preset: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_cli(monkeypatch, preset, "--help")
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "--output-stride" in said and "DIR|NAME" in said


def test_without_a_home_mmengines_cache_is_a_folder_of_this_process_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "kept")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # KeyError, as for a user without a passwd entry
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    framework.set_cache_home()
    assert os.environ["XDG_CACHE_HOME"] == "kept"
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(RuntimeError, match="home"):
        user_cache_path("YAPF")
    framework.set_cache_home()
    assert user_cache_path("YAPF").is_relative_to(tmp_path)
    assert Path(os.environ["XDG_CACHE_HOME"]).stat().st_mode & 0o77 == 0


def test_a_run_from_the_command_line_ends_with_its_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, masked: Path, tmp_path: Path
) -> None:
    flags = ["--data", str(masked), "--out", str(tmp_path / "run"), "--crop", "32", "--workers", "0", "--device", "cpu"]
    run_cli(monkeypatch, "smoke", *flags, "--steps", "2")
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-1].startswith(f"{tmp_path / 'run'}: ") and lines[-1].endswith(" % mIoU")
    assert any(line.startswith("| left ") for line in lines)


@pytest.mark.slow
def test_resume_takes_data_from_where_it_was_moved_and_no_other_data(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, masked: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    flags = ["--data", str(masked), "--out", str(out), "--crop", "32", "--workers", "0", "--device", "cpu"]
    run_cli(monkeypatch, "smoke", *flags, "--steps", "1")
    (out / "results.json").unlink()
    moved = masked.rename(tmp_path / "moved")
    run_cli(monkeypatch, "resume", str(out), "--data", str(moved))
    assert read_results(out).extra["moved"] == {"data": str(moved)}
    (out / "results.json").unlink()
    mask = next((moved / "labels" / "val").iterdir())
    mask.write_bytes(mask.read_bytes()[:-1] + b"!")
    with pytest.raises(SystemExit) as stopped:
        run_cli(monkeypatch, "resume", str(out), "--data", str(moved))
    assert stopped.value.code == 2 and "the data in " in capsys.readouterr().err


def test_bad_input_is_one_sentence_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    words = [
        "pspnet",
        "--checkpoint",
        "random:cifar/resnet20",
        "--data",
        str(tmp_path / "no"),
        "--out",
        str(tmp_path / "o"),
    ]
    with pytest.raises(SystemExit) as stopped:
        run_cli(monkeypatch, *words)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip().endswith(f"error: there is no folder {tmp_path / 'no'}")


@pytest.mark.parametrize("name", ["mmseg", "mmengine", "mmcv"])
def test_what_is_not_installed_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(framework.util, "find_spec", lambda asked: None if asked == name else object())
    with pytest.raises(ImportError, match=f"needs {name}, which comes with onedl-mm.*: pip install onedl-mmseg"):
        framework.find_framework()


def test_the_tool_says_it_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'mmseg' else find(name, *more)\n"
    )
    tool = Path(__file__).parents[2] / "tools" / "seg_transfer.py"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = ["smoke", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, tool, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: stillroom.seg_transfer needs mmseg, which comes")
    assert done.stderr.count("\n") == 1


def test_an_abandoned_release_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(distribution: str) -> str:
        if distribution == "mmcv":
            return "2.1.0"
        raise framework.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(framework.metadata, "version", version)
    with pytest.raises(ImportError, match=r"mmcv is installed, the abandoned release .*: pip uninstall mmcv, then pip"):
        framework.find_framework()


@pytest.mark.slow
def test_importing_says_nothing() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "from stillroom.seg_transfer import finetune"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "" and found.stderr == ""
