"""The state of an alignment's pass over the images, saved so that one that was stopped goes on from there."""

import io
import sys
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from stillroom.backbone.atomic import write_file
from stillroom.runs import Run
from stillroom.runs.store import optional_cache

SAVE_SECONDS = 300.0
"""Time between two saved states."""
_DIGEST_SIZE = 32  # bytes


class FitState:
    """The saved state of one process, in a file beside that of the alignment.

    Args:
        file: that will hold the alignment.
        key: the hash of everything that is fitted; a state of another one is not read.
        run: this process. Another number of processes shares the images otherwise, and starts again.
    """

    def __init__(self, file: Path, key: str, run: Run) -> None:
        self.file = file.with_name(f"{file.name}.fitting-{run.rank + 1}-of-{run.world_size}")
        self._key = key
        self._run = run
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The last state; None where there is none of this alignment, which is said if the file is damaged or of
        another one: it is then fitted anew.
        """
        if not self.file.exists():
            return None
        saved = self.file.read_bytes()
        digest, content = saved[:_DIGEST_SIZE], saved[_DIGEST_SIZE:]
        state = None
        if sha256(content).digest() == digest:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if state["key"] == self._key:
                return state
        reason = "damaged" if state is None else "the state of another fit"
        print(f"note: {self.file} is {reason}: the alignment is fitted anew", file=sys.stderr)
        return None

    def is_due(self) -> bool:
        """Whether the last state is old enough to save another."""
        return time.monotonic() - self._saved >= SAVE_SECONDS

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the saved state, behind its SHA-256; where the folder cannot be written, a warning says so once."""
        buffer = io.BytesIO()
        torch.save({**state, "key": self._key}, buffer)
        with optional_cache(self._run, self.file.parent):
            write_file(self.file, sha256(buffer.getbuffer()).digest() + buffer.getbuffer())
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Remove the file: the alignment is fitted."""
        self.file.unlink(missing_ok=True)
