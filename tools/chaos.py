"""Disturb toy runs of every trainer, and compare each with its uninterrupted twin.

    python tools/chaos.py --out runs/chaos                          some 25 min on two cores
    python tools/chaos.py --out runs/chaos --kills 4 --terms 2 --torchrun-kills 0 --full 2

SIGKILL and SIGTERM at random times, kills of one of two processes under torchrun --max-restarts, a disk that is full at
every size that a run passes (a tmpfs where mounting is allowed, else a limit on the size of files). Each run is started
again by the same command with `--if-exists resume`, and must end with the weights, metrics and logged losses of its
twin to the bit, with the exit codes that are documented, without a process or file left over.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro

from chaos_faults import Bench, Row, by_full_disks, by_signals, by_torchrun, wait_for
from chaos_trainers import TRAINERS, make_data
from stillroom.backbone.atomic import refuse_existing, write_file
from stillroom.backbone.checks import at_least
from stillroom.backbone.command import report_errors
from stillroom.runs import format_table
from stillroom.runs.run_files import to_json


@dataclass(frozen=True, kw_only=True)
class Chaos:
    """What is disturbed, and how often."""

    out: Path
    """Folder to create, with chaos.json, and the logs of runs that went wrong."""
    trainers: tuple[Literal["distill", "cls", "seg", "det"], ...] = ("distill", "cls", "seg", "det")
    """Trainers to disturb; det is the one by torchvision."""
    kills: int = 200
    """SIGKILLs, spread over the trainers."""
    terms: int = 20
    """SIGTERMs, spread over the trainers."""
    torchrun_kills: int = 10
    """Kills of one of two processes of a distillation under torchrun --max-restarts."""
    full: int = 8
    """Sizes of the disk on which each trainer runs until it is full, spread evenly up to the size that a run needs."""
    seed: int = 0
    """Seed of the times of the signals."""


def share(count: int, index: int, parts: int) -> int:
    """The `index`-th of equal parts of a count; the first get the rest."""
    return count // parts + (index < count % parts)


def disturb(settings: Chaos, data: Path, folder: Path) -> Iterator[Row]:
    """Disturb each trainer in each way; yield what came of it."""
    parts = len(settings.trainers)
    for index, name in enumerate(settings.trainers):
        bench = Bench(
            name=name,
            trainer=TRAINERS[name],
            data=data,
            folder=folder / name,
            rng=random.Random(f"{settings.seed} {name}"),
        )
        bench.folder.mkdir(parents=True)
        began = time.monotonic()
        twin = bench.start(bench.folder / "twin")
        wait_for(twin)
        if twin.exitcode != 0:
            raise ValueError(f"the undisturbed run of {name} failed: {bench.folder / 'twin.log'} says why")
        seconds = time.monotonic() - began
        yield by_signals(bench, signal.SIGKILL, share(settings.kills, index, parts), seconds)
        yield by_signals(bench, signal.SIGTERM, share(settings.terms, index, parts), seconds)
        yield by_full_disks(bench, settings.full)
        if name == "distill" and settings.torchrun_kills:
            yield by_torchrun(bench, settings.torchrun_kills)


def chaos(settings: Chaos) -> list[Row]:
    """Disturb all, print a table, and write chaos.json; the runs stay if one went wrong."""
    at_least(settings, 0, "kills", "terms", "torchrun_kills", "full", "seed")
    refuse_existing(settings.out)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    os.environ["STILLROOM_CACHE"] = str(folder / "cache")
    rows = []
    for row in disturb(settings, make_data(folder / "data"), folder):
        rows.append(row)
        print(
            f"{row.trainer}, {row.fault}: {row.faults} faults, {row.runs} runs, {len(row.wrong)} wrong", file=sys.stderr
        )
        write_file(settings.out / "chaos.json", to_json({"rows": [asdict(one) for one in rows]}, indent=2) + "\n")
    header = ["trainer", "fault", "faults", "runs, each equal to its twin", "wrong", "seconds"]
    cells = [[r.trainer, r.fault, f"{r.faults}", f"{r.runs}", f"{len(r.wrong)}", f"{r.seconds:.0f}"] for r in rows]
    print(format_table(header, cells))
    if wrong := [sentence for row in rows for sentence in row.wrong]:
        shutil.copytree(folder, settings.out / "runs", ignore=shutil.ignore_patterns("disk-*"))
        print("\n".join(wrong), file=sys.stderr)
    shutil.rmtree(folder)
    return rows


@report_errors
def main() -> None:
    """Read the command line and disturb; exit code 1 if anything was wrong."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no disk stays mounted
    rows = chaos(tyro.cli(Chaos, description=__doc__))
    if any(row.wrong for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
