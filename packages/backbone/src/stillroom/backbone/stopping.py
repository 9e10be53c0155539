"""SIGTERM and SIGUSR1: a run saves its state after the step that it is at, and ends with an exit code of its own."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

EXIT_CODE = 75
"""Of a run that a signal ended and that can be resumed: EX_TEMPFAIL, "try again", of sysexits.h."""
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what schedulers send before they kill
_received: str | None = None  # the name of the signal that came
_polled = False  # whether a loop asks after each step


class Stopped(SystemExit):
    """The end of a run by a signal; as an exception of Python, it is an exit, and no error that may be caught."""

    def __init__(self, reason: str) -> None:
        super().__init__(EXIT_CODE)
        self.reason = reason

    @classmethod
    def at(cls, signal_name: str, step: int, path: Path) -> "Stopped":
        """The end after a saved state."""
        return cls(f"{signal_name}: the state of step {step} is saved; `resume {path}` goes on from there")


@contextmanager
def stoppable(before_exit: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Around a run: a signal ends it after the step where a loop asks by `requested_stop`, elsewhere at once.

    Elsewhere no exception is raised: it would come wherever the program is, and locks and hooks would swallow it.

    Args:
        before_exit: called before the process ends at once, which unwinds nothing.
    """
    global _received, _polled
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    owner, _received, _polled = os.getpid(), None, False

    def receive(number: int, frame: FrameType | None) -> None:
        global _received
        if os.getpid() != owner:  # a loader's worker, a fork of ours: schedulers signal it too, and the run needs it
            return
        _received = signal.Signals(number).name
        if not _polled:
            before_exit()
            os.write(2, f"\nstopped: {_received} outside of training: `resume` goes on from the last state\n".encode())
            os._exit(EXIT_CODE)

    before = {number: signal.signal(number, receive) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received, _polled = None, False


def requested_stop() -> str | None:
    """The name of the signal that asked this process to stop; from now on a signal waits for the next call."""
    global _polled
    _polled = True
    return _received


def leave_loop() -> None:
    """A loop asks no more: from now on a signal ends the run at once."""
    global _polled
    _polled = False
