"""Run commands of tools/ in lanes: processes beside each other, one progress bar each, one line for each step done.

A lane that is free takes the first step whose needs are done.

A lane keeps what it has imported from one step to the next. What steps print goes to log files.
"""

import importlib
import io
import json
import multiprocessing
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tqdm import tqdm

from stillroom.backbone.files import write_file

RESUMABLE = ("distill", "cls_transfer", "seg_transfer", "det_transfer")
_STEP_COUNT = re.compile(r"\[\s*(\d+)/(\d+)\]")  # in MMEngine's log lines
_TITLE_WIDTH = 34  # characters


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command of tools/.

    Args:
        name: of its log and its record, unique in a folder.
        title: on the screen.
        tool: the script, without .py; it has a `main()`.
        words: what follows the script's name.
        out: what it makes.
        needs: names of the steps that have to be done before.
    """

    name: str
    title: str
    tool: str
    words: tuple[str, ...]
    out: Path
    needs: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command line, for the repository's root."""
        return f".venv/bin/python tools/{self.tool}.py {shlex.join(self.words)}"


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a lane sends about its step: its bar while it runs, its seconds when it is done, or an error."""

    bar: str = ""
    seconds: float | None = None
    kept: bool = False
    error: str = ""


class Lanes:
    """Worker processes that run steps, and their bars.

    Args:
        folder: of logs and records; a step with a record of the same command is not run again.
        number: of lanes; each gets an even share of the cores.
        summary: text for the line of a step that is done.

    Attributes:
        steps: run or kept so far.
        kept: whether one of them was done before.
    """

    def __init__(self, folder: Path, number: int, summary: Callable[[Step], str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.summary = summary
        self.steps: list[Step] = []
        self.kept = False
        terminal = sys.stderr.isatty()
        style = {"total": 0, "bar_format": "{desc}", "leave": False, "dynamic_ncols": True, "disable": not terminal}
        self.bars = [tqdm(position=place, **style) for place in range(number)]
        # torch reads its number of threads when it is imported. Spawn: forking a process with threads may hang.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(number)]
        self.pipes = [ours for ours, _ in pipes]
        self.processes = [context.Process(target=work, args=(theirs, folder, terminal)) for _, theirs in pipes]
        for process, (_, theirs) in zip(self.processes, pipes, strict=True):
            process.start()
            theirs.close()

    def run(self, steps: Sequence[Step]) -> None:
        """Run steps, each in the first lane that is free when its needs are done, until all are done.

        Raises:
            ValueError: a step failed, or stands in its place by another command.
        """
        self.steps += steps
        pending, running, done = list(steps), dict[Connection, Step](), set[str]()
        bars = dict(zip(self.pipes, self.bars, strict=True))
        while pending or running:
            for pipe in bars.keys() - running.keys():
                ready = next((step for step in pending if done.issuperset(step.needs)), None)
                if ready is not None:
                    pending.remove(ready)
                    running[pipe] = ready
                    pipe.send(ready)
            assert running, f"needed by {[step.name for step in pending]}, and in no step"
            for pipe in [pipe for pipe in wait(list(running)) if isinstance(pipe, Connection)]:
                try:
                    event: Event = pipe.recv()
                except EOFError as error:
                    raise ValueError(f"a worker process died, out of memory perhaps: see {self.folder}") from error
                self.show(running[pipe], event, bars[pipe])
                if event.seconds is not None:
                    done.add(running.pop(pipe).name)
                    bars[pipe].set_description_str("")

    def show(self, step: Step, event: Event, bar: "tqdm[None]") -> None:
        """Put an event on the screen.

        Raises:
            ValueError: it is an error.
        """
        if event.error:
            raise ValueError(f"{step.title}: {event.error}")
        if event.seconds is None:
            bar.set_description_str(f"{step.title:<{_TITLE_WIDTH}} {event.bar}")
            return
        self.kept |= event.kept
        line = f"{step.title:<{_TITLE_WIDTH}} {event.seconds:>4.0f} s   {self.summary(step)}"
        tqdm.write(line, file=sys.stderr)

    def seconds_of(self, step: Step) -> float:
        """How long a step took when it was run."""
        return float(json.loads(record_of(self.folder, step).read_text(encoding="utf-8"))["seconds"])

    def close(self) -> None:
        """End the processes."""
        for bar in self.bars:
            bar.close()
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.close()
            process.terminate()
            process.join()


@contextmanager
def open_lanes(folder: Path, number: int, summary: Callable[[Step], str]) -> Iterator[Lanes]:
    """Lanes that end with the block, however it ends; see `Lanes`."""
    lanes = Lanes(folder, number, summary)
    try:
        yield lanes
    finally:
        lanes.close()


def record_of(folder: Path, step: Step) -> Path:
    """The file that says that a step is done, by which command, in how many seconds."""
    return folder / f"{step.name}.json"


# --- in a worker process ----------------------------------------------------------------------------------------------


class StepOutput(io.TextIOBase):
    """stdout and stderr of the steps of a lane: bars go to the screen, all else to the step's log.

    Args:
        pipe: to the screen.
        terminal: whether the screen shows bars.
    """

    def __init__(self, pipe: Connection, terminal: bool) -> None:
        self.pipe = pipe
        self.terminal = terminal
        self.log: io.TextIOBase | None = None
        self.last_line = ""

    def isatty(self) -> bool:
        return self.terminal  # by this our bars choose how often they are drawn

    def write(self, text: str) -> int:
        assert self.log is not None, "steps alone print"
        *before, bar = text.split("\r")  # tqdm begins what it draws with a carriage return
        if before:
            if bar.strip():
                self.pipe.send(Event(bar=bar.strip()))
            return len(text)
        self.log.write(text)
        self.last_line = text.strip() or self.last_line
        if count := _STEP_COUNT.search(text):
            self.pipe.send(Event(bar=f"{count[1]} of {count[2]} steps"))
        return len(text)

    def flush(self) -> None:
        if self.log is not None:
            self.log.flush()


def work(pipe: Connection, folder: Path, terminal: bool) -> None:
    """Run the steps that come through the pipe, until it is closed or a step fails."""
    multiprocessing.set_start_method(None, force=True)  # for the steps' own processes: by default they too would spawn
    output = StepOutput(pipe, terminal)
    try:
        while True:
            event = keep_or_run(pipe.recv(), folder, output)
            pipe.send(event)
            if event.error:
                return
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return  # the other end is gone, or is told the same by the terminal


def keep_or_run(step: Step, folder: Path, output: StepOutput) -> Event:
    """Run a step unless its record says that it is done."""
    record = record_of(folder, step)
    if record.exists():
        done = json.loads(record.read_text(encoding="utf-8"))
        if done["command"] != step.command:
            return Event(error=f"{step.out} was made by another command: choose another --out")
        return Event(seconds=done["seconds"], kept=True)
    log = folder / f"{step.name}.log"
    output.pipe.send(Event(bar="..."))
    began = time.perf_counter()
    with log.open("a", encoding="utf-8") as output.log:
        error = run(step, output)
    if error:
        return Event(error=f"{error} (log: {log})")
    seconds = round(time.perf_counter() - began, 2)
    write_file(record, json.dumps({"command": step.command, "seconds": seconds}, indent=2) + "\n")
    return Event(seconds=seconds)


def run(step: Step, output: StepOutput) -> str:
    """Call a step's script in this process as its command line would; returns its error, or nothing."""
    stopped = step.tool in RESUMABLE and (step.out / "config.json").exists()
    sys.argv = [f"tools/{step.tool}.py", *(("resume", str(step.out)) if stopped else step.words)]
    with redirect_stdout(output), redirect_stderr(output):
        try:
            importlib.import_module(step.tool).main()
        except SystemExit as left:
            if left.code:
                return (output.last_line if isinstance(left.code, int) else str(left.code)).removeprefix("error: ")
        except Exception as error:  # noqa: BLE001  # of any kind: the parent tells of it, the log has the traceback
            traceback.print_exc()
            return f"stopped unexpectedly by {error.__class__.__name__}: {error}"
    return ""
