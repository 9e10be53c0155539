"""The progress bar of every loop over images: images/s, time left, share of the time spent waiting for data."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import TypeVar

from tqdm import tqdm

from stillroom.backbone.bars import standing
from stillroom.backbone.run import Run

B = TypeVar("B", bound=Sized)


class Progress:
    """Iterate a loader behind a bar, and keep the rate and the waiting time.

    Args:
        loader: gives batches.
        total: images in all, over all processes.
        run: this process; only the main one shows a bar.
        label: what is going on.
        done: images already done in an earlier life of this run.
    """

    def __init__(self, total: int, run: Run, label: str, done: int = 0) -> None:
        every = 0.5 if sys.stderr.isatty() else 15.0  # seconds; a log file should not fill with bars
        self._bar = tqdm(
            total=total, initial=done, desc=label, unit="img", disable=not run.is_main, smoothing=0.1, mininterval=every
        )
        standing.add(self._bar)
        self._world_size = run.world_size
        self._began = self._marked = time.perf_counter()
        self._waited = 0.0
        self._images = 0
        self.broken: set[str] = set()

    def over(self, loader: Iterable[B], *, close: bool = True) -> Iterator[B]:
        """The loader's batches, one by one, the time for each measured. The bar closes at the end, or stays."""
        batches = iter(loader)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                break
            yield batch
            self._images += len(batch) * self._world_size
            self._bar.update(len(batch) * self._world_size)
        if close:
            self.close()

    def close(self) -> None:
        """The bar is done."""
        self._bar.close()

    def lap(self) -> dict[str, float]:
        """Images per second and share of time spent waiting for data since the last lap; shown behind the bar."""
        now = time.perf_counter()
        spent = max(now - self._marked, 1e-9)
        lap = {"images_per_second": self._images / spent, "data_wait_share": min(self._waited / spent, 1.0)}
        self._marked, self._images, self._waited = now, 0, 0.0
        return lap

    def show(self, **values: float) -> None:
        """Put numbers behind the bar."""
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)

    def note(self, words: str, values: Mapping[str, float] | None = None) -> None:
        """A line above the bar: words, then numbers."""
        said = ", ".join(f"{name} {value:.4g}" for name, value in (values or {}).items())
        if not self._bar.disable:
            self._bar.write(f"{words}: {said}" if said else words, file=sys.stderr)

    def skip(self, broken: Iterable[str]) -> None:
        """Take note of images that could not be read; each is named once, without tearing the bar."""
        for sentence in broken:
            if sentence not in self.broken:
                self._bar.write(f"skipped: {sentence}", file=sys.stderr)
                self.broken.add(sentence)

    @property
    def seconds(self) -> float:
        """Wall time since the bar appeared."""
        return time.perf_counter() - self._began
