"""Which errors are meant for people and become a sentence, and which are bugs and keep their traceback."""

import linecache
import traceback
from pathlib import Path


def raised_by_us(error: BaseException, scripts: Path | None = None) -> bool:
    """Whether a `raise` of our code made `error`, rather than a library that our code called.

    Args:
        error: as it was caught.
        scripts: a folder whose scripts are our code too, beside the modules of `stillroom`.
    """
    if type(error).__module__.startswith("stillroom."):
        return True  # DataLoader raises an error of its worker again, in a frame of torch
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    file = frame.f_code.co_filename
    ours = _in_stillroom(error) or (scripts is not None and scripts in Path(file).parents)
    source = linecache.getline(file, line).strip()  # empty where the sources were not installed: then it is for people
    return ours and (not source or source.startswith("raise "))


def keeps_traceback(error: BaseException) -> bool:
    """Whether a sentence about the user's net, config or program must not replace `error`.

    It is a bug of ours (its innermost frame is in our code, and it is not a ValueError or OSError, which are for
    people), or memory ran out.
    """
    # torch's CPU allocator has no error class of its own; a GPU's is called OutOfMemoryError
    no_memory = "allocate memory" in str(error) or type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    return no_memory or (_in_stillroom(error) and not isinstance(error, ValueError | OSError))


def _in_stillroom(error: BaseException) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").startswith("stillroom.")
