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
        name: of its log and its record, unique in a folder.
        title: on the screen.
        tool: the script, without .py; it has a `main()`.
        words: what follows the script's name.
        out: what it makes.
        needs: names of the steps that have to be done before.
        inputs: fingerprint of what it reads that no step makes.
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
        """The command line, for the repository's root."""
        return f".venv/bin/python tools/{self.tool}.py {shlex.join(self.words)}"


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a lane sends about its step: its bar or a warning while it runs, its seconds when it is done, or an error.

    Args:
        seconds: that it took in this tour, or in an earlier one.
        resumed: an earlier tour had begun it, or done it.
        made: it was run now, and not kept.
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
        folder: of logs and records; a step with a record of the same command is not run again.
        num_lanes: each gets an even share of the cores.
        summary: text for the line of a step that is done.

    Attributes:
        steps: run or kept so far.
        resumed: whether an earlier tour had begun or done one of them.
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
        """Run steps, each in the first lane that is free when its needs are done, until all are done.

        Raises:
            ValueError: a step failed, or stands in its place by another command.
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
            assert running, f"needed by {[step.name for step in pending]}, and in no step"
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
        """Send to a worker process, or receive.

        Raises:
            ValueError: it is dead.
        """
        try:
            return action()
        except (EOFError, ConnectionError) as error:
            raise ValueError(f"a worker process died, out of memory perhaps: see {self.folder}") from error

    def show(self, step: Step, event: Event, bar: "tqdm[None]") -> None:
        """Put an event on the screen.

        Raises:
            ValueError: it is an error.
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
        """How long a step took, in its last life where it was resumed."""
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
def open_lanes(folder: Path, num_lanes: int, summary: Callable[[Step], str]) -> Iterator[Lanes]:
    """Lanes that end with the block, however it ends; see `Lanes`."""
    lanes = Lanes(folder, num_lanes, summary)
    try:
        yield lanes
    finally:
        lanes.close()


def record_of(folder: Path, step: Step) -> Path:
    """The file that says by which command a step was begun, on which inputs, and in how many seconds it was done."""
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
    """Run the steps that come through the pipe, until it is closed or a step fails."""
    multiprocessing.set_start_method(None, force=True)  # for the steps' own processes: by default they too would spawn
    output = StepOutput(pipe, terminal)
    try:
        while True:
            step, made = pipe.recv()
            event = keep_or_run(step, made, folder, output)
            pipe.send(event)
            if event.error:
                return
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return  # the other end is gone, or is told the same by the terminal


def keep_or_run(step: Step, made: set[str], folder: Path, output: StepOutput) -> Event:
    """Run a step unless its record says that it is done, and what it made is there.

    Args:
        made: those of its needs that were run now: what it made from their earlier ones counts no more.
    """
    record, begun = record_of(folder, step), {"command": step.command, "inputs": step.inputs}
    before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if step.out.exists() and before and before | begun != before:
        words = "on other images" if before["command"] == step.command else "by another command"
        return Event(error=f"{step.out} was begun {words}: choose another --out")
    resumed = bool(before) and step.out.exists()
    if resumed and made:
        return Event(error=f"{step.out} was made from an earlier {' and '.join(sorted(made))}: remove it")
    if resumed and "seconds" in before:
        return Event(seconds=before["seconds"], resumed=True)
    write_file(record, json.dumps(begun, indent=2) + "\n")
    log = folder / f"{step.name}.log"
    output.pipe.send(Event(bar="..."))
    began = time.perf_counter()
    if not resumed or step.tool in RESUMABLE:  # the others write aside: what is there is whole
        with log.open("a", encoding="utf-8") as output.log:
            error = run(step, resumed, output)
        if error:
            return Event(error=f"{error} (log: {log})")
    seconds = round(time.perf_counter() - began, 2)
    write_file(record, json.dumps(begun | {"seconds": seconds}, indent=2) + "\n")
    return Event(seconds=seconds, resumed=resumed, made=True)


def run(step: Step, resumed: bool, output: StepOutput) -> str:
    """Call a step's script in this process as its command line would; returns its error, or nothing."""
    sys.argv = [f"tools/{step.tool}.py", *(("resume", str(step.out)) if resumed else step.words)]
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
