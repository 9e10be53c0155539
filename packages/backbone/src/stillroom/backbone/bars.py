"""The progress bars that are open in the terminal."""

from weakref import WeakSet

from tqdm import tqdm

open_bars: WeakSet[tqdm] = WeakSet()


def close_bars() -> None:
    """Close every open bar, so that the next message starts on a line of its own."""
    for bar in list(open_bars):
        bar.close()
