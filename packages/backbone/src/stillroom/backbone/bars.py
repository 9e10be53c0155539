"""The progress bars that are open in the terminal."""

from tqdm import tqdm


def close_bars() -> None:
    """Close every open bar, so that the next message starts on a line of its own."""
    for bar in list(getattr(tqdm, "_instances", ())):  # tqdm's own set of them, made with the first bar
        bar.close()
