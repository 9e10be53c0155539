"""Which errors are meant for people and become a sentence, and which are bugs, whose traceback goes into a log."""

import contextlib
import linecache
import os
import platform
import re
import shlex
import sys
import tempfile
import time
import traceback
from pathlib import Path

from stillroom.backbone.atomic import write_file

# What a machine or a batch lacks, by words of the libraries' errors, which have no class of their own for it.
_LACKS = {
    r"DataLoader worker \(|Pin memory thread|open shared memory|</torch_": "usually shared memory (/dev/shm) or memory "
    "is full: pass fewer --workers (0: none), or raise the container's limit (docker run --shm-size 8g), then resume",
    "(?i)out of memory|allocate memory|unable to allocate|ALLOC_FAILED|MemoryError": "memory is full: pass a smaller "
    "--batch-size, a smaller image size or fewer --workers",
    r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed writing|unexpected pos \d+ vs": "no file "
    "is half-written: free some space there, then repeat the command, or `resume` the run",
    "more than 1 value per channel when training": "batch norm needs two images: pass a larger --batch-size",
    "Too many open files|items of ancdata": "pass fewer --workers, or raise the limit (`ulimit -n`)",
    "gloo/transport|NCCL error": "another process of the run has stopped: its own error says why",
}
_NOTE = "traceback written to "


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


def sentence_for(error: Exception, scripts: Path | None = None) -> str | None:
    """The sentence that tells people of `error`; None for a bug of ours, whose traceback somebody has to read.

    For people are the ValueErrors that a `raise` of our code made, what the system refuses (OSErrors), and the errors
    of libraries about what the machine lacks: memory, shared memory, disk, a package, another process of the run.

    Args:
        error, scripts: see `raised_by_us`.
    """
    text, ours = str(error).strip() or type(error).__name__, raised_by_us(error, scripts)
    if text.startswith("Caught "):  # DataLoader puts the traceback of its worker in front
        trace, _, text = text.rpartition(f"{type(error).__name__}: ")
        ours |= re.search(r'/stillroom/[^"\n]*", line .*\n +raise [^\n]*[\n ^~]*$', trace) is not None
    if isinstance(error, ValueError) and ours:
        return text
    if isinstance(error, OSError):
        text = f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or text}"
    if advice := next((advice for words, advice in _LACKS.items() if re.search(words, text)), None):
        return f"{text}; {advice}"
    if isinstance(error, ImportError) and not _in_stillroom(error):
        return f"{text}: a package is missing or damaged, install it again"
    return f"{text}; no file is half-written" if isinstance(error, OSError) else None


def keeps_traceback(error: BaseException) -> bool:
    """Whether a sentence about the user's net, config or program must not replace `error`.

    It is a bug of ours (its innermost frame is in our code, and it is not a ValueError or OSError, which are for
    people), or memory ran out.
    """
    # torch's CPU allocator has no error class of its own; a GPU's is called OutOfMemoryError
    no_memory = "allocate memory" in str(error) or type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    return no_memory or (_in_stillroom(error) and not isinstance(error, ValueError | OSError))


def unexpected(error: Exception) -> str:
    """The sentence for a bug: it asks for a report and names the log, which is written unless `log_traceback` did."""
    notes = [note.removeprefix(_NOTE) for note in getattr(error, "__notes__", ()) if note.startswith(_NOTE)]
    logs = [*filter(os.path.exists, notes)]  # not that of a trial run in a temporary folder
    lines = traceback.format_exception_only(error)[0].strip().splitlines()
    what = lines[-1 if "in DataLoader worker" in lines[0] else 0]  # the lines between are its traceback
    log = logs[0] if logs else _write_log(error, None)
    return f"unexpected {what}; please report this with {log}, which holds the traceback (--debug prints it)"


def log_traceback(error: Exception, folder: Path) -> None:
    """Write the traceback of a bug into a run directory, for `unexpected` to name; one log for each process."""
    error.add_note(f"{_NOTE}{_write_log(error, folder)}")


def _write_log(error: Exception, folder: Path | None) -> str:
    """Write error.log into `folder`, or into a temporary one if that is None or cannot be written; return its path."""
    from importlib.metadata import distributions  # noqa: PLC0415  # no good end needs it

    ours = sorted(f"{d.name} {d.version}" for d in distributions() if d.name.startswith(("stillroom", "torch")))
    system = ", ".join([platform.platform(), f"Python {platform.python_version()}", *ours])
    text = "\n".join([time.ctime(), shlex.join(sys.argv), system, "".join(traceback.format_exception(error))])
    name = "error.log" if (rank := os.environ.get("RANK", "0")) == "0" else f"error-rank{rank}.log"
    for place in (folder, None):
        with contextlib.suppress(OSError):  # the next place, then
            file = (place or Path(tempfile.mkdtemp(prefix="stillroom-"))) / name
            write_file(file, text)
            return str(file)
    sys.stderr.write(text)
    return "the lines above"


def _in_stillroom(error: BaseException) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").startswith("stillroom.")
