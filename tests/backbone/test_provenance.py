"""Where a file comes from."""

import datetime
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from stillroom.backbone import provenance
from stillroom.backbone.provenance import made_by, source_commit


def test_the_record_names_package_version_command_torch_and_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/stillroom-distill", "kdep", "--out", "a b"])
    record = made_by("stillroom-backbone", {"epochs": 3})
    assert (record.package, record.version) == ("stillroom-backbone", metadata.version("stillroom-backbone"))
    assert record.command == "stillroom-distill kdep --out 'a b'"
    assert (record.torch, record.config) == (torch.__version__, {"epochs": 3})
    written = datetime.datetime.fromisoformat(record.date)
    assert abs((datetime.datetime.now(datetime.UTC) - written).total_seconds()) < 60


def test_a_script_of_ones_own_has_no_version() -> None:
    assert made_by("my-script").version == "unknown"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository in which provenance.py stands, not yet added."""
    file = tmp_path / "provenance.py"
    file.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(file))
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    return subprocess.run(
        ["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_is_that_of_the_source_tree_and_says_when_it_differs(checkout: Path) -> None:
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    head = git(checkout, "rev-parse", "HEAD")
    assert source_commit() == head
    (checkout / "provenance.py").write_text("changed")
    assert source_commit() == f"{head}+dirty"


def test_a_file_that_git_does_not_track_has_no_commit(checkout: Path) -> None:
    assert source_commit() is None  # an installed wheel, whose virtual environment lies in somebody's repository


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    assert source_commit() is None


def test_a_repository_without_a_commit_has_none(checkout: Path) -> None:
    git(checkout, "add", "provenance.py")
    assert source_commit() is None
