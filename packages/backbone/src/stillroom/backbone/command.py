"""What every command line of ours does: bad input is one sentence on stderr and a non-zero exit."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Protocol

from stillroom.backbone.progress import close_bars


class Command(Protocol):
    """A subcommand: a dataclass of its flags, and what it does."""

    def run(self) -> object: ...


def say(text: str) -> None:
    """Print the outcome of a command; of several processes the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(text)


def plainly(main: Callable[[], None]) -> Callable[[], None]:
    """Run `main`; a ValueError, which is how we speak to people, becomes its sentence and exit code 2.

    So does what the system refuses: no space left, no permission. Files are written aside, so nothing is half-written.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            main()
        except ValueError as error:
            close_bars()
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            close_bars()
            where = f"{error.filename}: " if error.filename else ""
            print(f"error: {where}{error.strerror or error}; nothing was half-written", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped
