"""The states of a run on disk: the last two, each with its hash, written beside training."""

import copy
import io
import os
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import torch
from torch import Tensor

from stillroom.backbone.tensor_files import load_tensors
from stillroom.runs.claims import refuse_lost
from stillroom.runs.run_files import PREVIOUS, STATE

_MARK = b"sha256:"
_TAIL = 2 + len(_MARK) + 64
"""Bytes that end a state: the length of a zip archive's comment, and the comment, which is the hash of what is before
them. `torch.load` skips it. A state of an older version has none."""
_BLOCK = 2**24  # bytes that are hashed at a time


class StateWriter:
    """Write the states of a run in a thread, one at a time, while training goes on.

    Args:
        path: the run directory.
    """

    _threads: ClassVar[dict[Path, Thread]] = {}  # the write in progress of each run of this process

    def __init__(self, path: Path) -> None:
        self.path = path
        self._error: BaseException | None = None

    def write(self, state: Mapping[str, Any]) -> None:
        """Copy a state to the CPU and start to write it; an error of the write before is raised here."""
        self.wait()
        thread = Thread(target=self._write, args=(snapshot(state),), name="state")
        self._threads[self.path.absolute()] = thread
        thread.start()

    def _write(self, state: Mapping[str, Any]) -> None:
        try:
            write_state(self.path, state)
        except BaseException as error:  # noqa: BLE001  # raised again by `refuse_failed`, in the run's own thread
            self._error = error

    def refuse_failed(self) -> None:
        """Raise the error of a write that failed."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait for the write in progress; an error of it is raised here."""
        self.finish(self.path)
        self.refuse_failed()

    @classmethod
    def finish(cls, path: Path) -> None:
        """Wait until no state of the run in `path` is being written by this process."""
        if thread := cls._threads.pop(path.absolute(), None):
            thread.join()


def snapshot(value: Any) -> Any:
    """Copy a state to the CPU: what training changes afterwards does not change the copy."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        taken: Any = copy.copy(value)  # an OrderedDict of a module keeps the versions of its layers
        for name in value:
            taken[name] = snapshot(value[name])
        return taken
    if isinstance(value, list | tuple):
        return type(value)(snapshot(one) for one in value)
    return value


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write state/last.pt with its hash; the one before becomes state/previous.pt. Both are whole at any moment.

    Raises:
        OSError: the disk is full or read-only; the states that were there are untouched.
        ClaimedError: another process has taken the run over.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    digest = sha256(buffer.getbuffer()[:-2]).hexdigest()
    comment = _MARK + digest.encode()
    buffer.seek(-2, os.SEEK_END)
    buffer.write(len(comment).to_bytes(2, "little") + comment)
    refuse_lost(path)
    last, new = path / STATE, path / "state" / "new.pt"
    try:
        new.parent.mkdir(exist_ok=True)
        with new.open("wb") as opened:  # of a fixed name: what a kill leaves of it is written over
            opened.write(buffer.getbuffer())
            opened.flush()
            os.fsync(opened.fileno())
        if last.exists():
            last.replace(path / PREVIOUS)
        new.replace(last)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise OSError(error.errno, f"{error.strerror}; {what_is_kept(path)}", str(last)) from error


def what_is_kept(path: Path) -> str:
    """The end of a message about a run that fails: whether there is a state to resume from."""
    kept = (path / STATE).exists() or (path / PREVIOUS).exists()
    return "the last good state is kept" if kept else "no state had been saved yet"


def read_state(file: Path, advice: str = "remove it") -> dict[str, Any]:
    """Read a state, on the CPU.

    Args:
        file: of the state.
        advice: the end of the sentence if it cannot be read.

    Raises:
        ValueError: it is truncated or changed, or holds more than tensors and plain values.
    """
    if reason := damage(file):
        raise ValueError(f"{file} is damaged, {reason}: {advice}")
    state = load_tensors(file, advice=advice)
    try:
        int(state["step"])
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged, it has no step: {advice}") from error
    return state


def damage(file: Path) -> str | None:
    """How a state differs from the hash at its end, or from the end of a whole one; None: not at all."""
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - _TAIL))
        tail = opened.read()
        if not tail[2:].startswith(_MARK):
            # what ends an archive without a comment, as older versions wrote
            return None if tail[-22:-18] == b"PK\5\6" else "it is truncated"
        opened.seek(0)
        digest, left = sha256(), size - _TAIL
        while block := opened.read(min(_BLOCK, left)):
            digest.update(block)
            left -= len(block)
    same = digest.hexdigest().encode() == tail[2 + len(_MARK) :]
    return None if same else "its content has another hash than it was written with"


def load_last_state(path: Path, *, says: bool) -> dict[str, Any] | None:
    """Read the last whole state of a run; None if it saved none.

    Args:
        path: the run directory.
        says: on stderr, that the last one is damaged and the one before is used.

    Raises:
        ValueError: there are states, and none is whole.
    """
    advice = f"remove it, and {path} is resumed from its first step"
    files = [file for file in (path / STATE, path / PREVIOUS) if file.exists()]
    errors: list[ValueError] = []
    for file in files:
        try:
            state = read_state(file, advice)
        except ValueError as error:
            errors.append(error)
            continue
        if errors and says:
            words = f"{path} goes on from the state before, of step {state['step']}"
            print(f"warning: {files[0]} is damaged: {words}", file=sys.stderr)
        return state
    if errors:
        raise errors[0]
    return None


def drop_damaged(path: Path, state: Mapping[str, Any] | None) -> None:
    """Put the state before in the place of a damaged or missing last one, so that the next does not push it out."""
    last, previous = path / STATE, path / PREVIOUS
    if state is None or not previous.exists():
        return
    try:
        is_whole = last.exists() and bool(read_state(last))
    except ValueError:
        is_whole = False
    if not is_whole:
        previous.replace(last)
