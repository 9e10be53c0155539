"""The errors of a library or a user's program that become a sentence, and those that keep their traceback."""

import traceback


def keeps_traceback(error: Exception) -> bool:
    """Whether a sentence about the user's net, config or program must not replace `error`.

    It is a bug of ours (its innermost frame is in our code, and it is no ValueError or OSError, which are for people),
    or memory ran out.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    ours = frame.f_globals.get("__name__", "").startswith("stillroom.")
    # torch's CPU allocator has no error class of its own; a GPU's is called OutOfMemoryError
    no_memory = "allocate memory" in str(error) or type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    return no_memory or (ours and not isinstance(error, ValueError | OSError))
