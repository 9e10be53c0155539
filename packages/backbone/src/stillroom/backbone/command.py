"""What every command line of ours does: presets and commands, and bad input is one sentence and a non-zero exit."""

import functools
import inspect
import operator
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import tyro
from tyro.conf import Positional, arg, subcommand

from stillroom.backbone.bars import close_bars
from stillroom.backbone.flags import DeviceName


class Command(Protocol):
    """A subcommand: a dataclass of its flags, and what it does."""

    def run(self) -> object: ...


@dataclass(frozen=True, kw_only=True)
class ResumeFlags:
    """Go on with a run that was stopped, from its last state."""

    path: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run directory."""
    device: DeviceName | None = None
    """None keeps what the run began with."""
    workers: int | None = None
    """Processes that decode images; None keeps what the run began with."""
    log_every: int | None = None
    """Steps between two log lines; None keeps what the run began with."""

    @property
    def changes(self) -> dict[str, Any]:
        """The flags that take the place of the run's own, by name."""
        return {"device": self.device, "workers": self.workers, "log_every": self.log_every}


def subcommand_union(presets: Mapping[str, Callable[..., Any]], commands: Mapping[str, type]) -> Any:
    """Presets and commands as one union for tyro.

    Args:
        presets: functions that make a config; the docstring is the help, and what has no default is asked for.
        commands: dataclasses of flags.
    """
    configs = {}
    for name, preset in presets.items():
        needed = [p.name for p in inspect.signature(preset).parameters.values() if p.default is p.empty]
        configs[name] = preset(**dict.fromkeys(needed, tyro.MISSING))
    notes = {name: preset.__doc__ or "" for name, preset in presets.items()}
    members: list[Any] = [tyro.extras.subcommand_type_from_defaults(configs, descriptions=notes)]
    members += [Annotated[kind, subcommand(name)] for name, kind in commands.items()]
    return functools.reduce(operator.or_, members)


def print_on_main(text: str) -> None:
    """Print the outcome of a command; of several processes the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(text)


def report_errors(main: Callable[[], None]) -> Callable[[], None]:
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
