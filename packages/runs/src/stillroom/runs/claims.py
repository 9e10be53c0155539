"""Claims: one process, on any machine that shares the folder, writes a run at a time. Imports no torch."""

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

BEAT = 30.0
"""Seconds between two signs of life of a claim."""
STALE = 300.0
"""Seconds without a sign of life after which another machine takes a claim over. On the same machine a claim ends with
its process."""
_held: dict[Path, "Claim"] = {}


class ClaimedError(ValueError):
    """A run that another process writes."""


class Claim:
    """The claim of this process on a run: a file beside its directory with host, pid and start times.

    The time of the file's last change is its sign of life (heartbeat).

    Args:
        out: the run directory; it need not exist.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self.file = self.out.with_name(f".{self.out.name}.claim")
        pid = os.getpid()
        self._text = json.dumps(
            {
                "host": socket.gethostname(),
                "pid": pid,
                "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
                "machine": _machine(),
                "process": _start_of(pid),
                "id": uuid4().hex,
            }
        )
        self._released = threading.Event()
        self._made_folder = False

    def take(self, *, patient: bool = False) -> None:
        """Claim the run; a claim that is stale is taken over, which is said.

        Args:
            patient: wait for another machine's claim to show a sign of life or to become stale, at most `STALE`
                seconds, because a job that is started again may come sooner.

        Raises:
            ClaimedError: a living process has claimed it.
        """
        self._made_folder = not self.file.parent.exists()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        first_sign: float | None = None
        while True:
            try:
                self._create()
                break
            except FileExistsError:
                with suppress(FileNotFoundError):  # it has been released since: try again
                    text, sign = self.file.read_text(encoding="utf-8"), self.file.stat().st_mtime
                    first_sign = first_sign or sign
                    if not _is_alive(holder := _parse(text), sign):
                        self._take_over(text, holder)
                    elif patient and sign == first_sign and holder.get("machine") != _machine():
                        time.sleep(min(5.0, STALE / 10))
                    else:
                        raise ClaimedError(self._refusal(holder, sign)) from None
        _held[self.out] = self
        threading.Thread(target=self._beat, name="claim", daemon=True).start()

    def _create(self) -> None:
        """Write the claim; FileExistsError if there is one."""
        with self.file.open("xb", buffering=0) as opened:
            try:
                opened.write(self._text.encode())
            except OSError as error:  # a full disk: what is left would look like a claim
                self.file.unlink()
                raise OSError(error.errno, error.strerror, str(self.file)) from error

    def _take_over(self, text: str, holder: dict[str, Any]) -> None:
        """Remove a stale claim: of several processes that try, the one whose rename succeeds."""
        aside = self.file.with_name(f"{self.file.name}.{uuid4().hex[:8]}")
        self.file.rename(aside)
        if aside.read_text(encoding="utf-8") != text:  # another process has taken it over in between: it stays there
            aside.rename(self.file)
            return
        aside.unlink()
        print(f"note: {self.out} is taken over from {_words(holder)}, which has ended", file=sys.stderr)

    def _refusal(self, holder: dict[str, Any], sign: float) -> str:
        silent = max(0.0, time.time() - sign)
        return (
            f"{self.out} is being written by {_words(holder)}, last sign of life {silent:.0f} s ago: wait for it or "
            f"choose another --out (a claim without a sign of life is taken over after {STALE:.0f} s)"
        )

    def is_held(self) -> bool:
        """Whether the claim is still this process's own: a process that slept may have lost it."""
        try:
            return self.file.read_text(encoding="utf-8") == self._text
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """End the claim, and remove a folder that was made for it and is still empty."""
        self._released.set()
        _held.pop(self.out, None)
        if self.is_held():
            self.file.unlink()
        if self._made_folder:
            with suppress(OSError):  # it is not empty
                self.file.parent.rmdir()

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with suppress(OSError):  # a file server that is away for a while
                if self.is_held():
                    os.utime(self.file)


def refuse_lost(out: Path) -> None:
    """Refuse to write a run that this process had claimed, and that another has taken over.

    Raises:
        ClaimedError: nothing more must be written.
    """
    claim = _held.get(out.absolute())
    if claim is not None and not claim.is_held():
        raise ClaimedError(f"{out} was taken over by another process, because this one gave no sign of life: it ends")


def _is_alive(holder: dict[str, Any], sign: float) -> bool:
    if holder.get("machine") == _machine():
        return holder["process"] is not None and holder["process"] == _start_of(holder["pid"])
    return time.time() - sign < STALE


def _parse(text: str) -> dict[str, Any]:
    """Who holds a claim; empty for one that is being written, or damaged: its age decides then."""
    try:
        holder = json.loads(text)
    except ValueError:
        return {}
    is_whole = isinstance(holder, dict) and {"host", "pid", "started", "machine", "process"} <= holder.keys()
    return holder if is_whole else {}


def _words(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"process {holder['pid']} on {holder['host']} (since {holder['started']})"


def _machine() -> str:
    """What process numbers belong to: a host, since its last start, or one container on it."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # Linux only
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]  # noqa: PTH115
    return " ".join(parts)


def _start_of(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's unit; None: it has ended."""
    try:
        if not Path("/proc/self/stat").exists():  # not Linux: a number that is used again is taken for the same process
            os.kill(pid, 0)
            return "alive"
        state, *values = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    except PermissionError:
        return "alive"
    return None if state in "ZX" else values[18]


def release_all() -> None:
    """End every claim of this process, before it exits without unwinding."""
    for claim in list(_held.values()):
        claim.release()
