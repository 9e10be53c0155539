"""The faults of tools/chaos.py: signals, full disks, and processes of several that are killed."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from chaos_trainers import Trainer
from stillroom.backbone.command import report_errors
from stillroom.backbone.stopping import EXIT_CODE
from stillroom.runs.results import RESULTS
from stillroom.runs.run import read_metrics

PER_RUN = 6
"""Disturbances of one run, which then ends undisturbed."""
LONGEST = 300.0
"""Seconds after which a run counts as hanging."""
ORPHANS_END = 15.0
"""Seconds that the workers of a killed process get to notice it."""
EPOCHS, STEPS = 6, 4
"""Of the run under torchrun: epochs, and steps of each."""


@dataclass(kw_only=True)
class Row:
    """One trainer under one kind of fault.

    Args:
        faults: how many hit a running process.
        runs: that ended after some of them.
        wrong: what was not as it must be, one sentence each.
    """

    trainer: str
    fault: str
    faults: int = 0
    runs: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A trainer with its data, its twin and the folder that its runs are written in."""

    name: str
    trainer: Trainer
    data: Path
    folder: Path
    rng: random.Random

    def start(self, out: Path, limit: int | None = None) -> BaseProcess:
        """Start or resume a run, as its command would, in a forked process group; at most `limit` bytes in a file."""

        def run() -> None:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            log = (self.folder / f"{out.name}.log").open("a", encoding="utf-8", buffering=1)
            for number in (1, 2):
                os.dup2(log.fileno(), number)
            sys.stdout = sys.stderr = log
            torch.set_num_threads(1)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            report_errors(lambda: void(self.trainer.run(self.trainer.config(self.data, out))))()

        process = get_context("fork").Process(target=run)
        process.start()
        return process

    def finish(self, out: Path, row: Row) -> None:
        """Let a run end, and compare it with its twin."""
        process = self.start(out)
        wait_for(process)
        if process.exitcode is None:
            os.killpg(process.pid or 0, signal.SIGKILL)
            row.wrong.append(f"{out.name} hangs")
        elif process.exitcode != 0:
            row.wrong.append(f"{out.name} ended with exit code {process.exitcode}")
        else:
            row.wrong += [f"{out.name} differs from its twin in {what}" for what in self.differences(out)]
            row.wrong += [f"{out.name} left {name}" for name in litter(out)]
        row.wrong += orphans([process.pid or 0])
        row.runs += 1

    def differences(self, out: Path) -> Iterator[str]:
        """What of a finished run is not equal to its twin."""
        (weights, said), (twin, twin_said) = (self.trainer.outcome(one) for one in (out, self.folder / "twin"))
        if weights.keys() != twin.keys() or not all(torch.equal(weights[name], twin[name]) for name in twin):
            yield "its weights"
        yield from (f"its {name}" for name in twin_said if json.dumps(said[name]) != json.dumps(twin_said[name]))


def wait_for(process: BaseProcess, seconds: float = LONGEST) -> None:
    """Wait for a process to end; `join` would wait for its orphans too, which hold its pipe."""
    until = time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < until:
        time.sleep(0.01)


def void(_: object) -> None:
    """Drop a value."""


def litter(out: Path) -> list[str]:
    """What a finished run must not leave: a claim, or a file that was being written."""
    beside = [*out.parent.glob(f".{out.name}.*"), *out.rglob(".*.partial"), *out.rglob(".*.old"), *out.rglob("new.pt")]
    return sorted(file.name for file in beside)


def living(group: int) -> list[int]:
    """The processes of a process group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, number, *_ = stat.read_text().rpartition(") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if int(number) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def by_signals(bench: Bench, number: signal.Signals, count: int, seconds: float) -> Row:
    """Send a signal at random times of a run, `seconds` long, and start it again after each."""
    row, began, groups = Row(trainer=bench.name, fault=number.name), time.monotonic(), []
    expected = {-number, EXIT_CODE} if number == signal.SIGTERM else {-number}  # -15: before the run had begun
    while row.faults < count:
        out = bench.folder / f"{number.name}-{row.runs}"
        for _ in range(min(PER_RUN, count - row.faults)):
            process = bench.start(out)
            wait_for(process, bench.rng.uniform(0, seconds))
            if not process.is_alive():
                break  # finished: this run takes no more
            os.kill(process.pid or 0, number)
            wait_for(process)
            row.faults += 1
            groups.append(process.pid or 0)
            if process.exitcode not in expected and not (process.exitcode == 0 and (out / RESULTS).exists()):
                row.wrong.append(f"{out.name} ended with exit code {process.exitcode} after {number.name}")
        bench.finish(out, row)
    row.wrong += orphans(groups)
    row.seconds = time.monotonic() - began
    return row


def orphans(groups: list[int]) -> list[str]:
    """The processes that outlive the one that started them, killed now."""
    until = time.monotonic() + ORPHANS_END
    while any(map(living, groups)) and time.monotonic() < until:
        time.sleep(0.5)
    left = [group for group in groups if living(group)]
    for group in left:
        os.killpg(group, signal.SIGKILL)
    return [f"process group {group} has orphans" for group in left]


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Mount a tmpfs of `size` bytes at `folder`; whether that is allowed."""
    folder.mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    ).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)


def by_full_disks(bench: Bench, count: int) -> Row:
    """Run on disks of several sizes until they are full; then make room, and run on."""
    row, began = Row(trainer=bench.name, fault="full disk"), time.monotonic()
    twin = [file.stat().st_size for file in (bench.folder / "twin").rglob("*") if file.is_file()]
    for index in range(count):
        with small_disk(bench.folder / f"disk-{index}", int(sum(twin) * (index + 1) / (count + 1))) as mounted:
            out = bench.folder / f"disk-{index}" / f"full-{index}"
            row.fault = "full disk (tmpfs)" if mounted else "full disk (file size limit)"
            process = bench.start(out, limit=None if mounted else int(max(twin) * (index + 1) / (count + 1)))
            wait_for(process)
            said = (bench.folder / f"{out.name}.log").read_text()
            row.faults += process.exitcode != 0
            if process.exitcode not in (0, 2) or (process.exitcode == 2 and "no file is half-written" not in said):
                row.wrong.append(f"{out.name} ended with exit code {process.exitcode} and without our sentence")
            if mounted:
                subprocess.run(["mount", "-o", "remount,size=1g", bench.folder / f"disk-{index}"], check=True)
            bench.finish(out, row)
    row.seconds = time.monotonic() - began
    return row


def by_torchrun(bench: Bench, count: int) -> Row:
    """Kill one of two processes of a distillation; torchrun starts both again."""
    row, began = Row(trainer="distill, 2 processes", fault="SIGKILL under torchrun"), time.monotonic()
    two = replace(bench, folder=bench.folder / "torchrun")
    two.folder.mkdir()
    if start_torchrun(two, two.folder / "twin").wait(LONGEST) != 0:
        row.wrong.append("the undisturbed run under torchrun failed")
    while row.faults < count and not row.wrong:
        out = two.folder / f"torchrun-{row.runs}"
        agent, killed, groups = start_torchrun(two, out), 0, []
        while killed < min(PER_RUN, count - row.faults) and wait_for_line(out, agent, bench.rng):
            workers = workers_of(agent.pid)
            os.kill(bench.rng.choice(workers), signal.SIGKILL)
            groups += workers
            killed += 1
        row.faults += killed
        if agent.wait(LONGEST) != 0:
            row.wrong.append(f"{out.name} ended with exit code {agent.returncode}")
            continue
        row.wrong += [f"{out.name} differs from its twin in {what}" for what in two.differences(out)]
        row.wrong += [f"{out.name} left {name}" for name in litter(out)] + orphans([agent.pid, *groups])
        row.runs += 1
        if not killed:
            row.wrong.append(f"{out.name} ended before a process of it could be killed")
    row.seconds = time.monotonic() - began
    return row


def start_torchrun(bench: Bench, out: Path) -> subprocess.Popen[bytes]:
    """Start a distillation on two processes, which torchrun starts again when one fails."""
    words: list[object] = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        2,
        "--max-restarts",
        2 * PER_RUN,
    ]
    words += [Path(__file__).parent / "distill.py", "smoke", "--data", bench.data / "unlabelled", "--out", out]
    words += ["--teacher.size", 16, "--student.size", 16, "--epochs", EPOCHS, "--if-exists", "resume"]
    words += ["--save-minutes", 0.005, "--device", "cpu"]
    with (bench.folder / f"{out.name}.log").open("ab") as log:
        command = [sys.executable, "-m", *map(str, words)]
        return subprocess.Popen(command, stdout=log, stderr=log, process_group=0)


def wait_for_line(out: Path, agent: subprocess.Popen[bytes], rng: random.Random) -> bool:
    """Wait until a run has logged a random one of the steps that are left; whether it still runs then."""
    now = len(read_metrics(out))
    target = now + rng.randint(1, max(1, (EPOCHS * STEPS - now) // 2))
    while agent.poll() is None:
        if len(read_metrics(out)) >= target and len(workers_of(agent.pid)) == 2:
            return not (out / RESULTS).exists()
        time.sleep(0.02)
    return False


def workers_of(agent: int) -> list[int]:
    """The training processes that torchrun has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):  # each is in a process group of its own
        with suppress(OSError):  # it has just ended
            state, parent, *_ = stat.read_text().rpartition(") ")[2].split()
            if parent == str(agent) and state not in "ZX":
                found.append(int(stat.parent.name))
    return found
