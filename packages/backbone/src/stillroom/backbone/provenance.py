"""The provenance of a file: package, version, commit, command, torch, date."""

import datetime
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from stillroom.backbone.manifest import MadeBy


def made_by(package: str, config: Mapping[str, Any] | None = None) -> MadeBy:
    """The provenance record of a file written now by `package`."""
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:  # a checkpoint written by a user's script
        version = "unknown"
    return MadeBy(
        package=package,
        version=version,
        commit=source_commit(),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        torch=torch.__version__,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        config=dict(config or {}),
    )


def source_commit() -> str | None:
    """The commit of the source tree this code runs from, `+dirty` with uncommitted changes; None for a wheel."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        if subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True).returncode != 0:
            return None
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # no git on this machine, or no commit yet
        return None
    return head + ("+dirty" if changes.strip() else "")
