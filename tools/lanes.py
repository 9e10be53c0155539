"""Run commands of tools/ in lanes: parallel worker processes, each with a progress bar; one line per finished step.

A free lane takes the first step whose needs are done. It keeps its imported modules from one step to the next. The
output of steps goes to log files.
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
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stillroom.backbone.atomic import write_file

RESUMABLE = ("distill", "cls_transfer", "seg_transfer", "det_transfer")
_STEP_COUNT = re.compile(r"\[\s*(\d+)/(\d+)\]")  # in MMEngine's log lines
_TITLE_WIDTH = 34  # characters


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command of tools/.

    Args:
        name: names its log and its record; unique in a folder.
        title: shown on the screen.
        tool: the script, without .py; it has a `main()`.
        words: the command line after the script's name.
        out: the file or directory that it makes.
        needs: names of the steps that must be done before.
        inputs: fingerprint of its inputs that no step makes.
    """

    name: str
    title: str
    tool: str
    words: tuple[str, ...]
    out: Path
    needs: tuple[str, ...] = ()
    inputs: str = ""

    @property
    def command(self) -> str:
        """The command line, to be run in the repository's root."""
        return f".venv/bin/python tools/{self.tool}.py {shlex.join(self.words)}"


@dataclass(frozen=True, kw_only=True)
class Event:
    """A message from a lane about its step: a bar or a warning while it runs, seconds when it is done, or an error.

    Args:
        bar: text of the progress bar.
        warning: a line that the step printed as a warning.
        error: one sentence; the step failed.
        seconds: duration of the finished step, in this tour or in an earlier one.
        resumed: an earlier tour had started or finished the step.
        made: the step ran now; its output was not kept from an earlier tour.
    """

    bar: str = ""
    warning: str = ""
    error: str = ""
    seconds: float | None = None
    resumed: bool = False
    made: bool = False


class Lanes:
    """Worker processes that run steps, and their bars.

    Args:
        folder: holds logs and records; a step with a record of the same command is not run again.
        num_lanes: number of worker processes; each gets an equal share of the cores.
        summary: text for the line of a finished step.

    Attributes:
        steps: run or kept so far.
        resumed: whether an earlier tour had started or finished one of them.
    """

    def __init__(self, folder: Path, num_lanes: int, summary: Callable[[Step], str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.summary = summary
        self.steps: list[Step] = []
        self.resumed = False
        terminal = sys.stderr.isatty()
        style = {"total": 0, "bar_format": "{desc}", "leave": False, "dynamic_ncols": True, "disable": not terminal}
        self.bars = [tqdm(position=position, **style) for position in range(num_lanes)]
        # torch reads its number of threads when it is imported. Spawn: forking a process with threads may hang.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_lanes)))
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(num_lanes)]
        self.pipes = [ours for ours, _ in pipes]
        self.processes = [context.Process(target=work, args=(theirs, folder, terminal)) for _, theirs in pipes]
        for process, (_, theirs) in zip(self.processes, pipes, strict=True):
            process.start()
            theirs.close()

    def run(self, steps: Sequence[Step]) -> None:
        """Run steps, each in the first free lane once its needs are done, until all are done.

        Raises:
            ValueError: a step failed, or its output was made by another command.
        """
        self.steps += steps
        pending, running, done, made = list(steps), dict[Connection, Step](), set[str](), set[str]()
        bars = dict(zip(self.pipes, self.bars, strict=True))
        while pending or running:
            for pipe in bars.keys() - running.keys():
                ready = next((step for step in pending if done.issuperset(step.needs)), None)
                if ready is not None:
                    pending.remove(ready)
                    running[pipe] = ready
                    self.exchange(partial(pipe.send, (ready, made.intersection(ready.needs))))
            assert running, f"{[step.name for step in pending]} need steps that do not exist"
            for pipe in [pipe for pipe in wait(list(running)) if isinstance(pipe, Connection)]:
                event: Event = self.exchange(pipe.recv)
                self.show(running[pipe], event, bars[pipe])
                if event.seconds is not None:
                    name = running.pop(pipe).name
                    done.add(name)
                    if event.made:
                        made.add(name)
                    bars[pipe].set_description_str("")

    def exchange(self, action: Callable[[], Any]) -> Any:
        """Send to a worker process, or receive from it.

        Raises:
            ValueError: the process died.
        """
        try:
            return action()
        except (EOFError, ConnectionError) as error:
            raise ValueError(f"a worker process died, perhaps out of memory: see {self.folder}") from error

    def show(self, step: Step, event: Event, bar: "tqdm[None]") -> None:
        """Show an event on the screen.

        Raises:
            ValueError: the event is an error.
        """
        if event.error:
            raise ValueError(f"{step.title}: {event.error}")
        if event.warning:
            tqdm.write(f"{step.title}: {event.warning}", file=sys.stderr)
            return
        if event.seconds is None:
            bar.set_description_str(f"{step.title:<{_TITLE_WIDTH}} {event.bar}")
            return
        self.resumed |= event.resumed
        line = f"{step.title:<{_TITLE_WIDTH}} {event.seconds:>4.0f} s   {self.summary(step)}"
        tqdm.write(line, file=sys.stderr)

    def seconds_of(self, step: Step) -> float:
        """Seconds that a step took; of a resumed step, since the last resume."""
        return float(json.loads(record_of(self.folder, step).read_text(encoding="utf-8"))["seconds"])

    def close(self) -> None:
        """Stop the worker processes."""
        for bar in self.bars:
            bar.close()
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.close()
            process.terminate()
            process.join()


@contextmanager
def open_lanes(folder: Path, num_lanes: int, summary: Callable[[Step], str]) -> Iterator[Lanes]:
    """Lanes whose processes stop when the block ends, also by an error; see `Lanes`."""
    lanes = Lanes(folder, num_lanes, summary)
    try:
        yield lanes
    finally:
        lanes.close()


def record_of(folder: Path, step: Step) -> Path:
    """The file with a step's command and inputs, and with its seconds once it is done."""
    return folder / f"{step.name}.json"


# --- in a worker process ----------------------------------------------------------------------------------------------


class StepOutput(io.TextIOBase):
    """stdout and stderr of a lane's steps: progress bars go to the screen, everything else to the step's log.

    Args:
        pipe: to the main process, which draws on the screen.
        terminal: whether the screen shows bars.
    """

    def __init__(self, pipe: Connection, terminal: bool) -> None:
        self.pipe = pipe
        self.terminal = terminal
        self.log: io.TextIOBase | None = None
        self.last_line = ""

    def isatty(self) -> bool:
        return self.terminal  # our bars choose by this how often they are drawn

    def write(self, text: str) -> int:
        assert self.log is not None, "only a running step prints"
        *before, bar = text.split("\r")  # tqdm draws after a carriage return
        if before:
            if bar.strip():
                self.pipe.send(Event(bar=bar.strip()))
            return len(text)
        self.log.write(text)
        if text.startswith(("warning: ", "skipped: ")):
            self.pipe.send(Event(warning=text.strip()))
        self.last_line = text.strip() or self.last_line
        if count := _STEP_COUNT.search(text):
            self.pipe.send(Event(bar=f"{count[1]} of {count[2]} steps"))
        return len(text)

    def flush(self) -> None:
        if self.log is not None:
            self.log.flush()


def work(pipe: Connection, folder: Path, terminal: bool) -> None:
    """Run the steps that arrive through the pipe, until it is closed or a step fails."""
    multiprocessing.set_start_method(None, force=True)  # the steps' own processes are not spawned
    output = StepOutput(pipe, terminal)
    try:
        while True:
            step, made = pipe.recv()
            event = keep_or_run(step, made, folder, output)
            pipe.send(event)
            if event.error:
                return
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return  # the main process is gone, or got the same interrupt from the terminal


def keep_or_run(step: Step, made: set[str], folder: Path, output: StepOutput) -> Event:
    """Run a step, unless its record says that it is done and its output exists.

    Args:
        step: the step.
        made: those of its needs that ran now: an output made from their earlier outputs is stale.
        folder: holds logs and records.
        output: receives the step's stdout and stderr.
    """
    record, current = record_of(folder, step), {"command": step.command, "inputs": step.inputs}
    before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if step.out.exists() and before and before | current != before:
        how = "on other images" if before["command"] == step.command else "by another command"
        return Event(error=f"{step.out} was started {how}: choose another --out")
    resumed = bool(before) and step.out.exists()
    if resumed and made:
        return Event(error=f"{step.out} was made from an earlier {' and '.join(sorted(made))}: remove it")
    if resumed and "seconds" in before:
        return Event(seconds=before["seconds"], resumed=True)
    write_file(record, json.dumps(current, indent=2) + "\n")
    log = folder / f"{step.name}.log"
    output.pipe.send(Event(bar="..."))
    began = time.perf_counter()
    if not resumed or step.tool in RESUMABLE:  # the others write atomically: an output that exists is complete
        with log.open("a", encoding="utf-8") as output.log:
            error = run(step, resumed, output)
        if error:
            return Event(error=f"{error} (log: {log})")
    seconds = round(time.perf_counter() - began, 2)
    write_file(record, json.dumps(current | {"seconds": seconds}, indent=2) + "\n")
    return Event(seconds=seconds, resumed=resumed, made=True)


def run(step: Step, resumed: bool, output: StepOutput) -> str:
    """Call a step's script in this process as its command line would; returns its error, or an empty string."""
    sys.argv = [f"tools/{step.tool}.py", *(("resume", str(step.out)) if resumed else step.words)]
    with redirect_stdout(output), redirect_stderr(output):
        try:
            importlib.import_module(step.tool).main()
        except SystemExit as left:
            if left.code:
                return (output.last_line if isinstance(left.code, int) else str(left.code)).removeprefix("error: ")
        except Exception as error:  # noqa: BLE001  # of any kind: the main process reports it, the log has the traceback
            traceback.print_exc()
            return f"failed with {error.__class__.__name__}: {error}"
    return ""
