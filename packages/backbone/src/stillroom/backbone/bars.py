"""The progress bars that stand in the terminal."""

from weakref import WeakSet

from tqdm import tqdm

standing: WeakSet[tqdm] = WeakSet()


def close_bars() -> None:
    """End every bar that stands, so that what is said next has a line of its own."""
    for bar in list(standing):
        bar.close()
