"""Shared parts of our command lines: presets and commands, and errors as one sentence and a non-zero exit code."""

import contextlib
import functools
import inspect
import io
import json
import operator
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Protocol

import tyro
from tyro.conf import Positional, arg, subcommand

from stillroom.backbone.atomic import write_file
from stillroom.backbone.bars import close_bars
from stillroom.backbone.errors import raised_by_us, sentence_for, unexpected
from stillroom.backbone.flags import DeviceName, Workers
from stillroom.backbone.launch import adopt_slurm
from stillroom.backbone.stopping import Stopped, stoppable

DEBUG = "STILLROOM_DEBUG"
"""1 in the environment is `--debug`: the traceback of every error is printed."""
DEBUG_HELP = "With --debug, an error also prints its traceback."


class Command(Protocol):
    """A subcommand: a dataclass of its flags, with the function that runs it."""

    def run(self) -> object: ...


@dataclass(frozen=True, kw_only=True)
class ResumeFlags:
    """Resume a run that was stopped, from its last state."""

    path: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run directory. Names, sizes and labels of all images, the contents of up to 1,000 of them (first MiB), the
    weights of nets and the other files must have the hashes of its inputs.json. Relative paths are those of the
    directory that it was started in."""
    device: DeviceName | None = None
    """auto, cpu, cuda or mps; None keeps the run's device."""
    workers: Workers | None = None
    """Processes that decode images, or auto; None keeps the run's setting."""
    log_every: int | None = None
    """Steps between two lines of metrics.jsonl, or of a framework's own log; None keeps the run's number."""

    @property
    def changes(self) -> dict[str, Any]:
        """The flags that replace the run's own settings, and those that say where its inputs lie now, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "path"}


def subcommand_union(presets: Mapping[str, Callable[..., Any]], commands: Mapping[str, type]) -> Any:
    """Presets (functions that make a config) and commands (dataclasses of flags) as one union for tyro.

    A preset's docstring is its help, and a parameter without a default is a required flag.
    """
    configs = {}
    for name, preset in presets.items():
        needed = [p.name for p in inspect.signature(preset).parameters.values() if p.default is p.empty]
        configs[name] = preset(**dict.fromkeys(needed, tyro.MISSING))
    notes = {name: preset.__doc__ or "" for name, preset in presets.items()}
    members: list[Any] = [tyro.extras.subcommand_type_from_defaults(configs, descriptions=notes)]
    members += [Annotated[kind, subcommand(name)] for name, kind in commands.items()]
    return functools.reduce(operator.or_, members)


def parse_command(kind: Any, **settings: Any) -> Any:
    """Read the command line as `tyro.cli` does, but leave errors of our own to `report_errors`.

    tyro puts a ValueError of a nested config into a box that begins with an internal name. It exits while it handles
    that error, so Python has recorded ours as the context of the exit.

    Raises:
        ValueError: a config refused a value.
        SystemExit: after `--help`, or on a command line that tyro refuses; its message is printed.
    """
    printed = io.StringIO()
    settings["description"] = f"{settings.get('description', '')} {DEBUG_HELP}".strip()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(kind, **settings)
    except SystemExit as stop:
        error = stop.__context__
        while error is not None and not (isinstance(error, ValueError) and raised_by_us(error)):
            error = error.__context__
        if error is not None:
            raise error from None
        sys.stderr.write(printed.getvalue())
        raise


def print_on_main(text: str) -> None:
    """Print the result of a command; with several processes, only the main one prints."""
    if os.environ.get("RANK", "0") == "0":
        print(text)


def report_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Run `main`; an error ends in one sentence on stderr: one for people with exit code 2, a bug of ours with 1.

    A run that SIGTERM or SIGUSR1 stopped ends with exit code 75 (`stopping.EXIT_CODE`), interrupted by Ctrl-C with 130.
    See `sentence_for` and `unexpected`; `--debug` on the command line, or STILLROOM_DEBUG=1, prints the traceback too.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        if "--debug" in sys.argv:
            sys.argv.remove("--debug")
            os.environ[DEBUG] = "1"
        adopt_slurm()
        try:
            with stoppable():
                main()
        except Stopped as stop:
            close_bars()
            print(f"stopped: {stop.reason}", file=sys.stderr)
            raise
        except Exception as error:  # noqa: BLE001  # the last place that can say anything
            close_bars()
            if os.environ.get(DEBUG) == "1":
                traceback.print_exception(error)
            sentence, code = sentence_for(error, Path(inspect.getfile(inspect.unwrap(main))).parent), 2
            if sentence is None:
                sentence, code = unexpected(error), 1
            if reply := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # the file that torchrun's own report reads
                with contextlib.suppress(OSError):
                    write_file(Path(reply), json.dumps({"message": sentence, "timestamp": int(time.time())}))
            print(f"error: {sentence}", file=sys.stderr)
            sys.exit(code)
        except KeyboardInterrupt:
            close_bars()
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped
