"""The processes of one run fail together: the sentence of the one that failed first ends every other, within seconds.

A process that fails leaves its peers in a collective operation, where they would wait for it until a timeout. So it
posts its sentence in the key-value store of the process group, and a thread of each peer looks there.
"""

import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

from stillroom.backbone.errors import sentence_for
from stillroom.backbone.stopping import Stopped
from stillroom.runs.claims import release_all
from stillroom.runs.run import Run

LOOK_EVERY = 0.2
"""Seconds between two looks for the failure of another process."""
GRACE = 3.0
"""Seconds that a process whose peer has failed gets to leave its collective operation by itself."""
_LOST_PEER = re.compile("gloo/transport|NCCL error|Connection (closed|reset) by peer|remote process exited")
_blocks = itertools.count()


class PeerError(ValueError):
    """The failure of another process of the run."""


@contextmanager
def failing_together(run: Run) -> Iterator[None]:
    """Around what the processes of a run do together.

    Raises:
        PeerError: another process failed; its sentence.
        Stopped: another process ended without one: by a signal outside of training, or because it was killed.
    """
    if run.world_size == 1:
        yield
        return
    board = _Board(run)
    watcher = threading.Thread(target=board.watch, name="peers", daemon=True)
    watcher.start()
    try:
        yield
    except Exception as error:
        if isinstance(error, dist.DistNetworkError) or _LOST_PEER.search(str(error)):
            if failure := board.wait_for_failure():
                raise PeerError(failure) from error
            raise Stopped(
                "another process of the run has ended without an error, by a signal or because it was killed: the same "
                "command with --if-exists resume, or `resume`, goes on from the last state"
            ) from error
        board.post(sentence_for(error) or f"{type(error).__name__}: {error}")
        raise
    finally:
        board.left.set()
        watcher.join()


class _Board:
    """What the processes of a run tell each other, in the store that connected them.

    Args:
        run: this process.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.left = threading.Event()
        self._failure: str | None = None
        self._read = threading.Event()
        self._prefix = f"stillroom/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_blocks)}"
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # a connection of its own: the main thread may hold the group's while it waits
        self._store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))

    def post(self, sentence: str) -> None:
        """Tell the others why this process fails, and wait a moment until they have read it: it may hold the store."""
        if self._failure is not None:  # another failed before
            return
        text = f"process {self.run.rank} of the run has failed: {sentence}"
        with suppress(RuntimeError):  # the store is gone with the process that held it
            if self._store.add(f"{self._prefix}/failed", 1) == 1:
                self._store.set(f"{self._prefix}/sentence", text)
            until = time.monotonic() + GRACE
            while self._store.add(f"{self._prefix}/know", 0) < self.run.world_size and time.monotonic() < until:
                time.sleep(LOOK_EVERY / 10)

    def wait_for_failure(self) -> str | None:
        """What ended the process that this one has lost, if it could still say so."""
        self._read.wait(GRACE)
        return self._failure

    def watch(self) -> None:
        """Look for a failure of another process until the block is left; end this process if it does not leave."""
        while not self.left.wait(LOOK_EVERY):
            try:
                if not self._store.check([f"{self._prefix}/sentence"]):
                    continue
                self._failure = self._store.get(f"{self._prefix}/sentence").decode()
                self._store.add(f"{self._prefix}/know", 1)
            except RuntimeError:  # the store is gone: the group's own errors say that
                return
            self._read.set()
            if not self.left.wait(GRACE):
                print(f"error: {self._failure}", file=sys.stderr, flush=True)
                release_all()
                os._exit(2)  # the main thread waits in a collective operation, which nothing else ends
            return
