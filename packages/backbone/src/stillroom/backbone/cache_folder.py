"""Where caches lie. Imports no torch."""

import functools
import os
import sys
import tempfile
from pathlib import Path


def cache_directory(kind: str) -> Path:
    """`$STILLROOM_CACHE/<kind>`, by default below ~/.cache/stillroom, or below /tmp for a user without a home."""
    if root := os.environ.get("STILLROOM_CACHE"):
        return Path(root) / kind
    home = os.path.expanduser("~")  # noqa: PTH111  # Path.home() raises where there is neither HOME nor a passwd entry
    if home == "~":
        root = f"{tempfile.gettempdir()}/stillroom-{os.getuid()}"
        warn_once(f"there is no home directory, so caches are kept in {root}: set STILLROOM_CACHE to another folder")
        return Path(root) / kind
    return Path(home) / ".cache" / "stillroom" / kind


@functools.cache
def warn_once(text: str) -> None:
    """Print a warning on stderr, once per process."""
    print(f"warning: {text}", file=sys.stderr)
