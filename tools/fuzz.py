"""Feed mutated files to every reader, and report what does not end in a result or in one of our sentences.

python tools/fuzz.py --samples 100000 --out runs/fuzz
"""

import contextlib
import io
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from fuzz_files import Target, content_of
from stillroom.backbone.atomic import write_file
from stillroom.backbone.checks import above, at_least
from stillroom.backbone.command import report_errors
from stillroom.backbone.errors import sentence_for
from stillroom.runs import format_table

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A mutated file on which a reader failed.

    Args:
        target: name of the reader.
        sample: number of the mutation; with the seed, it gives the file again.
        kind: error class, or hang, crash or memory.
        place: innermost line of the traceback.
        message: the error's text, or what was measured.
    """

    target: str
    sample: int
    kind: str
    place: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Fuzz:
    """Mutate files and read them."""

    out: Path
    """Folder to create: fuzz.json, and the files on which a reader failed."""
    samples: int = 100_000
    """Mutated files, spread evenly over the readers."""
    seed: int = 0
    """Seed of the mutations."""
    only: tuple[str, ...] = ()
    """Readers to run, by name; without it: all."""
    workers: int = os.cpu_count() or 1
    """Processes that read."""
    seconds: float = 20.0
    """A reader that takes longer on one file hangs."""
    gib: float = 2.0
    """Memory that reading one file may take beyond what the libraries take, GiB."""

    def __post_init__(self) -> None:
        at_least(self, 1, "samples", "workers")
        at_least(self, 0, "seed")
        above(self, 0, "seconds", "gib")


def read_one(target: Target, sample: int) -> Fault | bool:
    """Read the file: whether it was accepted, or the fault."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            target.read()
    except Exception as error:  # noqa: BLE001  # any error is an outcome here
        if isinstance(error, ValueError | OSError) and sentence_for(error) is not None:
            return False
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        return Fault(
            target=target.name, sample=sample, kind=type(error).__name__, place=place, message=str(error)[:300]
        )
    return True


def read_samples(target: Target, samples: range, settings: Fuzz, results: Any) -> None:
    """Read a range of samples, in a process of its own whose memory is bounded.

    Args:
        target: the reader.
        samples: numbers of the mutations.
        settings: of the run.
        results: queue of what `read_one` returns, by sample.
    """
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and others write there by themselves
    with Path("/proc/self/statm").open() as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + int(settings.gib * GIB)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for sample in samples:
        target.file.write_bytes(content_of(target, settings.seed, sample))
        results.put((sample, read_one(target, sample)))


def run_target(build: Callable[[Path], Target], num_samples: int, settings: Fuzz, folder: Path) -> dict[str, Any]:
    """Read all samples of one target; returns the counts and the faults.

    A process that dies or hangs is replaced by another, which begins with the next sample.
    """
    context = multiprocessing.get_context("fork")  # the libraries are loaded once
    counts, faults = Counter[str](), []
    share = -(-num_samples // settings.workers)
    lanes = []
    for worker in range(settings.workers):
        samples = range(worker * share, min(num_samples, (worker + 1) * share))
        (folder / str(worker)).mkdir(parents=True)
        lanes.append(Lane(build(folder / str(worker)), samples, settings, context))
    with tqdm(total=num_samples, desc=lanes[0].target.name, unit="file") as bar:
        while any(lane.unfinished for lane in lanes):
            for lane in lanes:
                for outcome in lane.collect():
                    bar.update()
                    if isinstance(outcome, Fault):
                        faults.append(outcome)
                        content = content_of(lane.target, settings.seed, outcome.sample)
                        write_file(
                            settings.out / outcome.target / f"{outcome.sample}{lane.target.file.suffix}", content
                        )
                    counts["fault" if isinstance(outcome, Fault) else "read" if outcome else "refused"] += 1
    return {"samples": num_samples, **counts, "faults": [asdict(fault) for fault in faults]}


class Lane:
    """One process that reads samples, restarted after a hang or a crash."""

    def __init__(self, target: Target, samples: range, settings: Fuzz, context: Any) -> None:
        self.target = target
        self.unfinished = samples
        self.settings = settings
        self.context = context
        self._start()

    def _start(self) -> None:
        self.results = self.context.SimpleQueue()
        self.process = self.context.Process(
            target=read_samples, args=(self.target, self.unfinished, self.settings, self.results)
        )
        if self.unfinished:
            self.process.start()
        self.last = time.monotonic()

    def collect(self) -> list[Fault | bool]:
        """What has been read since the last call; waits for a tenth of a second at most."""
        outcomes = []
        if not self.unfinished:
            return []
        ended = not self.process.is_alive()  # before the queue is emptied, so that nothing is lost
        while not self.results.empty():
            sample, outcome = self.results.get()
            outcomes.append(outcome)
            self.unfinished = self.unfinished[self.unfinished.index(sample) + 1 :]
            self.last = time.monotonic()
        if not self.unfinished:
            self.process.join()
        elif ended or time.monotonic() - self.last > self.settings.seconds:
            self.process.kill()
            self.process.join()
            sample = self.unfinished[0]
            kind, message = (
                ("crash", f"exit {self.process.exitcode}") if ended else ("hang", f"{self.settings.seconds} s")
            )
            outcomes.append(Fault(target=self.target.name, sample=sample, kind=kind, place="", message=message))
            self.unfinished = self.unfinished[1:]
            self._start()
        elif not outcomes:
            time.sleep(0.1)
        return outcomes


@report_errors
def main() -> None:
    """Fuzz every reader, write fuzz.json, print a table; exit with 1 if there is a fault."""
    settings = tyro.cli(Fuzz, description=__doc__)
    from fuzz_targets import TARGETS  # noqa: PLC0415  # imports torch, MMSegmentation and more

    unknown = [name for name in settings.only if name not in TARGETS]
    if unknown:
        raise ValueError(f"there is no reader {unknown[0]!r}: choose from {', '.join(TARGETS)}")
    if settings.out.exists():
        raise ValueError(f"{settings.out} exists: choose another --out")
    chosen = {name: build for name, build in TARGETS.items() if name in (settings.only or TARGETS)}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results = {
            name: run_target(build, -(-settings.samples // len(chosen)), settings, Path(folder) / name)
            for name, build in chosen.items()
        }
    record = {"settings": asdict(settings) | {"out": str(settings.out)}, "seconds": round(time.monotonic() - began)}
    write_file(settings.out / "fuzz.json", json.dumps(record | {"targets": results}, indent=2) + "\n")
    columns = ("samples", "read", "refused", "fault")
    rows = [[name, *(str(result.get(column, 0)) for column in columns)] for name, result in results.items()]
    print(format_table(["reader", "files", "read", "refused in a sentence", "faults"], rows))
    kinds = Counter((f["target"], f["kind"], f["place"]) for result in results.values() for f in result["faults"])
    for (name, kind, place), count in kinds.most_common():
        print(f"{name}: {kind} {place} {count} times")
    print(settings.out / "fuzz.json")
    if kinds:
        sys.exit(1)


if __name__ == "__main__":
    main()
