"""Draw a small world of textured shapes on textured grounds as ordinary JPEG folders: seeded, nothing to download.

    python tools/make_toy_data.py --out data/toy            16,800 pictures of 48 px, about 25 s on two cores
    python tools/make_toy_data.py --out data/toy-smoke --num-unlabelled 64 --num-train 64 --num-heldout 32 --num-val 32

    data/toy/unlabelled/                    every shape in every texture: to distil a student on
    data/toy/objects/{train,val}/           16 classes, known textures on known shapes: to train a teacher on
    data/toy/heldout-pairs/{train,val}/     8 classes, known textures on known shapes the teacher has not seen them on
    data/toy/heldout-shapes/{train,val}/    8 classes, new shapes in known textures
    data/toy/heldout-textures/{train,val}/  8 classes, new textures on known shapes
    data/toy/dataset.json                   settings, counts, class names, fingerprint of this generator

A picture depends on (seed, folder, index) alone, so the number of processes changes no byte. What is held out is held
out from the teacher: such objects do occur in unlabelled/, as among a practitioner's own pictures, but without a label
and in no picture of a held-out folder. Colour, place, size, rotation, light and clutter know nothing of the class.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import tyro
from PIL import Image
from tqdm import tqdm

import toy_scenes
from toy_scenes import HELDOUT_SHAPES, HELDOUT_TEXTURES, KNOWN_SHAPES, KNOWN_TEXTURES, Kind, draw_scene, render


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to draw, how much of it, and where to put it."""

    out: Path
    """directory to write; it must not exist yet"""
    seed: int = 0
    """integer from 0; another seed draws other pictures of the same world"""
    size: int = 48
    """side of every picture, pixels, from 16"""
    num_unlabelled: int = 6000
    """pictures without labels"""
    num_train: int = 6000
    """training pictures of the teacher's task, shared evenly by its 16 classes"""
    num_heldout: int = 960
    """training pictures of each held-out task, shared evenly by its 8 classes"""
    num_val: int = 480
    """validation pictures of each task, shared evenly by its classes"""
    num_workers: int = os.cpu_count() or 1
    """processes that draw; the pictures do not depend on it"""


# ---- Tasks: which shapes and textures a class may have.


ANYTHING = Kind(shapes=(*KNOWN_SHAPES, *HELDOUT_SHAPES), textures=(*KNOWN_TEXTURES, *HELDOUT_TEXTURES))


def known_pairs(modulus: int, remainder: int) -> dict[str, Kind]:
    """Classes that are one known texture on one known shape: those whose places in the two lists sum to `remainder`."""
    return {
        f"{texture}-{shape}": Kind(shapes=(shape,), textures=(texture,))
        for i, texture in enumerate(KNOWN_TEXTURES)
        for j, shape in enumerate(KNOWN_SHAPES)
        if (i + j) % modulus == remainder
    }


TEACHER_TASK = "objects"
TASKS: dict[str, dict[str, Kind]] = {
    # A third of the pairs: each shape in two textures, so that neither names the class and the teacher must learn both.
    TEACHER_TASK: known_pairs(3, 0),
    # Each shape in one texture that the teacher has not seen it in.
    "heldout-pairs": known_pairs(6, 1),
    "heldout-shapes": {shape: Kind(shapes=(shape,), textures=tuple(KNOWN_TEXTURES)) for shape in HELDOUT_SHAPES},
    "heldout-textures": {
        texture: Kind(shapes=tuple(KNOWN_SHAPES), textures=(texture,)) for texture in HELDOUT_TEXTURES
    },
}


# ---- Writing.


def count_pictures(settings: Settings) -> dict[str, int]:
    """Pictures per folder, in all classes together."""
    counts = {"unlabelled": settings.num_unlabelled}
    for task in TASKS:
        counts[f"{task}/train"] = settings.num_train if task == TEACHER_TASK else settings.num_heldout
        counts[f"{task}/val"] = settings.num_val
    return counts


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to write into `folder`, below its class if it has one."""

    folder: str
    index: int
    label: str | None
    kind: Kind


def list_jobs(counts: dict[str, int]) -> Iterator[Job]:
    """Every picture of the data set, the classes of a task taking turns."""
    for folder, count in counts.items():
        classes = list(TASKS.get(folder.split("/")[0], {None: ANYTHING}).items())
        for index in range(count):
            label, kind = classes[index % len(classes)]
            yield Job(folder=folder, index=index, label=label, kind=kind)


def write_picture(root: Path, seed: int, size: int, job: Job) -> None:
    """Draw one picture and save it below `root`."""
    picture = render(draw_scene(seed, job.folder, job.index, job.label, job.kind), size)
    folder = root / job.folder / (job.label or "")
    folder.mkdir(parents=True, exist_ok=True)
    # Full chroma resolution: two colours alternate within a few pixels.
    Image.fromarray(picture).save(folder / f"{job.index:06d}.jpg", quality=95, subsampling=0)


def describe(settings: Settings) -> dict[str, object]:
    """What dataset.json says: all that decides the pictures, and neither where nor by how many processes."""
    source = b"".join(Path(file).read_bytes() for file in (__file__, toy_scenes.__file__))
    return {
        "settings": {name: value for name, value in asdict(settings).items() if name not in ("out", "num_workers")},
        "generator": {"sha256": hashlib.sha256(source).hexdigest(), "numpy": np.__version__, "pillow": PIL.__version__},
        "counts": count_pictures(settings),
        "teacher_task": TEACHER_TASK,
        "heldout_tasks": [task for task in TASKS if task != TEACHER_TASK],
        "classes": {task: list(kinds) for task, kinds in TASKS.items()},
    }


def check(settings: Settings) -> None:
    """Refuse what cannot give a data set, before anything is written."""
    if settings.out.exists():
        raise ValueError(f"{settings.out} exists already: remove it or give another --out")
    if settings.seed < 0:
        raise ValueError(f"--seed is {settings.seed}: give an integer from 0")
    if settings.size < 16:
        raise ValueError(f"--size is {settings.size} px: shapes can be told apart from 16 px on")
    for folder, count in count_pictures(settings).items():
        num_classes = len(TASKS.get(folder.split("/")[0], [None]))
        if count < num_classes:
            raise ValueError(f"{folder} would hold {count} pictures: give at least {num_classes}, one of each class")


def leave_signals_to_parent() -> None:
    """Ctrl-C and a termination reach the whole process group; only the parent shall act on them.

    A worker that died of one with a lock of the pool in its hand would hang the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, exit_if_orphaned)


def exit_if_orphaned(*_: object) -> None:
    """What a worker does when it is terminated."""
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        os._exit(1)


def make_toy_data(settings: Settings) -> None:
    """Write the data set beside `out`, and give it its name only when it is whole."""
    check(settings)
    jobs = list(list_jobs(count_pictures(settings)))
    pool = ProcessPoolExecutor(settings.num_workers, initializer=leave_signals_to_parent)
    unfinished = settings.out.with_name(f".{settings.out.name}.{os.getpid()}.unfinished")
    unfinished.mkdir(parents=True)
    write = partial(write_picture, unfinished, settings.seed, settings.size)
    try:
        every = 0.5 if sys.stderr.isatty() else 10.0  # seconds; a log file should not fill with bars
        for _ in tqdm(pool.map(write, jobs, chunksize=32), total=len(jobs), unit="image", mininterval=every):
            pass
        (unfinished / "dataset.json").write_text(json.dumps(describe(settings), indent=2) + "\n")
        unfinished.rename(settings.out)
    except BaseException:
        pool.shutdown(cancel_futures=True)  # waits for the pictures in hand: none may land after the removal
        shutil.rmtree(unfinished)
        raise
    pool.shutdown()
    print(f"{settings.out}: {len(jobs)} pictures")


def main() -> None:
    """Read the command line and make the data set."""
    # A terminated run cleans up like an interrupted one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        make_toy_data(tyro.cli(Settings))
    except ValueError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
