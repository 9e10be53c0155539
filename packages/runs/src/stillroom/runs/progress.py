"""The progress bar of every loop over images: images/s, time left, share of time spent waiting for data."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import TypeVar

from tqdm import tqdm

from stillroom.runs.run import Run

B = TypeVar("B", bound=Sized)

MAX_WAIT = 0.1
"""Share of the time spent waiting for data above which a warning says what to do."""
SETTLED_SECONDS = 30.0
"""Time that must have passed since the first lap, in which worker processes start, before that share is judged."""


class Progress:
    """Show a bar while a loader is iterated, on the main process only, and measure the rate and the waiting time.

    Args:
        total: number of images, over all processes.
        label: text before the bar.
        done: images processed before this run was resumed.
    """

    def __init__(self, total: int, run: Run, label: str, done: int = 0) -> None:
        every = 0.5 if sys.stderr.isatty() else 15.0  # seconds; fewer lines in a log file
        self._bar = tqdm(
            total=total, initial=done, desc=label, unit="img", disable=not run.is_main, smoothing=0.1, mininterval=every
        )
        self._world_size = run.world_size
        self._began = self._marked = time.perf_counter()
        self._waited = 0.0
        self._images = 0
        self._settled: list[float] | None = None  # seconds, and those waited, since the first lap; None: in that lap
        self._has_warned = False
        self.broken: set[str] = set()

    def over(self, loader: Iterable[B], *, close: bool = True) -> Iterator[B]:
        """Yield the loader's batches and measure the wait for each. The bar closes at the end if `close`."""
        batches = iter(loader)
        while True:
            requested = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - requested
            if batch is None:
                break
            yield batch
            self._images += len(batch) * self._world_size
            self._bar.update(len(batch) * self._world_size)
        if close:
            self.close()

    def close(self) -> None:
        """Close the bar."""
        self._bar.close()

    def lap(self) -> dict[str, float]:
        """Images per second, and share of time spent waiting for data (0 to 1), since the last lap."""
        now = time.perf_counter()
        spent = max(now - self._marked, 1e-9)
        self._judge_wait(spent)
        lap = {"images_per_second": self._images / spent, "data_wait_share": min(self._waited / spent, 1.0)}
        self._marked, self._images, self._waited = now, 0, 0.0
        return lap

    def _judge_wait(self, spent: float) -> None:
        if self._settled is None:
            self._settled = [0.0, 0.0]
            return
        seconds, waited = self._settled = [self._settled[0] + spent, self._settled[1] + self._waited]
        if not self._has_warned and seconds >= SETTLED_SECONDS and waited > MAX_WAIT * seconds:
            self._has_warned = True
            self.note(
                f"warning: {waited / seconds:.0%} of the time goes into waiting for images: pass a larger --workers "
                f"(auto takes the cores that are there), give the job more cores, or store the images smaller or on a "
                f"faster disk"
            )

    def show(self, **values: float) -> None:
        """Show numbers after the bar."""
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)

    def note(self, words: str, values: Mapping[str, float] | None = None) -> None:
        """Print a line above the bar: words, then numbers."""
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in (values or {}).items())
        if not self._bar.disable:
            self._bar.write(f"{words}: {numbers}" if numbers else words, file=sys.stderr)

    def skip(self, broken: Iterable[str]) -> None:
        """Record images that could not be read; each is printed once, above the bar."""
        for sentence in broken:
            if sentence not in self.broken:
                self._bar.write(f"skipped: {sentence}", file=sys.stderr)
                self.broken.add(sentence)

    @property
    def seconds(self) -> float:
        """Wall time in seconds since the bar was made."""
        return time.perf_counter() - self._began
