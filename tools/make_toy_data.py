"""Draw a small world of textured shapes on noisy backgrounds as ordinary JPEG folders: seeded, without downloads.

    python tools/make_toy_data.py --out data/toy            17,400 images, 48 and 96 px, about 30 s on two cores
    python tools/make_toy_data.py --out data/toy-smoke --num-unlabelled 64 --num-train 64 --num-heldout 32 \
        --num-val 32 --num-scenes 32 --num-scenes-val 16

    data/toy/unlabelled/                    every shape in every texture: for distillation
    data/toy/objects/{train,val}/           16 classes, known textures on known shapes: for training with labels
    data/toy/heldout-pairs/{train,val}/     8 classes, known textures on known shapes, in other pairs
    data/toy/heldout-shapes/{train,val}/    8 classes, new shapes in known textures
    data/toy/heldout-textures/{train,val}/  8 classes, new textures on known shapes
    data/toy/scenes/                        2 to 4 objects of any shape in the 8 new textures: to segment and detect
        images/{train,val}/000000.jpg           images
        labels/{train,val}/000000.png           8-bit masks: 0 background, 1 to 8 the class of the pixel
        classes.txt                             the names of 0 to 8, one per line
        annotations/{train,val}.json            the objects in COCO's format; category ids are those of the mask
    data/toy/dataset.json                   settings, counts, class names, hash of this generator

An image depends only on (seed, folder, index) and its size, so the number of processes does not change a byte. Held-out
shapes and textures are in no image of objects/. They do occur in unlabelled/, as among a practitioner's own images, but
without labels, and no image there is also in a held-out folder. Colour, position, size, rotation, light and clutter are
independent of the class.

Masks, boxes and areas cover what is visible: objects of a scene overlap, and clutter, which has no label, may lie on
top. A scene in which less than half of an object is visible is drawn again, so that every object is recognisable and
has a box.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import tyro
from jaxtyping import Bool
from PIL import Image
from tqdm import tqdm

import toy_scenes
from stillroom.backbone.command import report_errors
from toy_scenes import (
    HELDOUT_SHAPES,
    HELDOUT_TEXTURES,
    KNOWN_SHAPES,
    KNOWN_TEXTURES,
    Kind,
    draw_crowd,
    draw_scene,
    find_layers,
    render,
)

STOPS = (signal.SIGINT, signal.SIGTERM)
"""The signals of Ctrl-C and of termination."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to draw, how much, and where to write it."""

    out: Path
    """Directory to create; it must not exist yet."""
    seed: int = 0
    """Seed, an integer from 0; another one draws other images of the same world."""
    size: int = 48
    """Side of every image, pixels, at least 16."""
    num_unlabelled: int = 6000
    """Images without labels."""
    num_train: int = 6000
    """Training images of objects/, divided evenly among its 16 classes."""
    num_heldout: int = 960
    """Training images of each held-out task, divided evenly among its 8 classes."""
    num_val: int = 480
    """Validation images of each task, divided evenly among its classes."""
    scene_size: int = 96
    """Side of every image of scenes/, pixels, at least 48."""
    num_scenes: int = 480
    """Training images of scenes/; 0: no such folder."""
    num_scenes_val: int = 120
    """Validation images of scenes/."""
    num_workers: int = os.cpu_count() or 1
    """Processes that draw; the images do not depend on it."""


# ---- Tasks: which shapes and textures a class may have.


ANYTHING = Kind(shapes=(*KNOWN_SHAPES, *HELDOUT_SHAPES), textures=(*KNOWN_TEXTURES, *HELDOUT_TEXTURES))


def known_pairs(modulus: int, remainder: int) -> dict[str, Kind]:
    """Classes of one known texture on one known shape, whose indices in the two lists sum to `remainder`."""
    return {
        f"{texture}-{shape}": Kind(shapes=(shape,), textures=(texture,))
        for i, texture in enumerate(KNOWN_TEXTURES)
        for j, shape in enumerate(KNOWN_SHAPES)
        if (i + j) % modulus == remainder
    }


TEACHER_TASK = "objects"
TASKS: dict[str, dict[str, Kind]] = {
    # A third of the pairs: each shape in two textures, so that neither alone gives the class and both must be learned.
    TEACHER_TASK: known_pairs(3, 0),
    # Each shape in one texture that it does not have in objects/.
    "heldout-pairs": known_pairs(6, 1),
    "heldout-shapes": {shape: Kind(shapes=(shape,), textures=tuple(KNOWN_TEXTURES)) for shape in HELDOUT_SHAPES},
    "heldout-textures": {
        texture: Kind(shapes=tuple(KNOWN_SHAPES), textures=(texture,)) for texture in HELDOUT_TEXTURES
    },
}


# The classes of objects in scenes/; an index, from 1, is the class in a mask and the category of a box.
SCENE_KINDS = {texture: Kind(shapes=ANYTHING.shapes, textures=(texture,)) for texture in HELDOUT_TEXTURES}


# ---- Writing.


def count_images(settings: Settings) -> dict[str, int]:
    """Number of images per folder, over all classes."""
    counts = {"unlabelled": settings.num_unlabelled}
    for task in TASKS:
        counts[f"{task}/train"] = settings.num_train if task == TEACHER_TASK else settings.num_heldout
        counts[f"{task}/val"] = settings.num_val
    return counts


def count_scenes(settings: Settings) -> dict[str, int]:
    """Number of images with several labelled objects, per split."""
    if settings.num_scenes == 0:
        return {}
    return {"scenes/train": settings.num_scenes, "scenes/val": settings.num_scenes_val}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One image to write into `folder`, in a subfolder of its class if it has one."""

    folder: str
    index: int
    label: str | None
    kind: Kind


def list_jobs(counts: dict[str, int]) -> Iterator[Job]:
    """Every image of the data set; the classes of a task alternate."""
    for folder, count in counts.items():
        classes = list(TASKS.get(folder.split("/")[0], {None: ANYTHING}).items())
        for index in range(count):
            label, kind = classes[index % len(classes)]
            yield Job(folder=folder, index=index, label=label, kind=kind)


def write_image(root: Path, seed: int, size: int, job: Job) -> None:
    """Draw one image and save it below `root`."""
    image = render(draw_scene(seed, job.folder, job.index, job.label, job.kind), size)
    save(image, root / job.folder / (job.label or "") / f"{job.index:06d}.jpg")


def save(pixels: np.ndarray, path: Path) -> None:
    """Write an image as .jpg or a mask as .png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Full chroma resolution: two colours alternate within a few pixels. PNG has no such settings.
    Image.fromarray(pixels).save(path, quality=95, subsampling=0)


def write_scene(root: Path, seed: int, size: int, folder: str, index: int) -> list[dict[str, object]]:
    """Draw one image of several objects, save it and its mask below `root`, and return its annotations."""
    scene = draw_crowd(seed, folder, index, SCENE_KINDS, size)
    layers = find_layers(scene.objects, size)
    names = [None, *SCENE_KINDS]  # clutter and the background have no label
    ids = [0, *(names.index(thing.label) for thing in scene.objects)]
    task, split = folder.split("/")
    save(render(scene, size), root / task / "images" / split / f"{index:06d}.jpg")
    save(np.array(ids, np.uint8)[layers], root / task / "labels" / split / f"{index:06d}.png")
    return [annotate(layers == layer, category_id) for layer, category_id in enumerate(ids) if category_id != 0]


def annotate(visible: Bool[np.ndarray, "h w"], category_id: int) -> dict[str, object]:
    """COCO's annotation of the object visible at these pixels."""
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    left, top, right, bottom = (int(edge) for edge in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return {
        "category_id": category_id,
        "bbox": [left, top, right - left, bottom - top],
        "area": int(visible.sum()),
        "iscrowd": 0,
    }


def coco(annotations: list[list[dict[str, object]]], size: int) -> dict[str, object]:
    """The contents of a COCO file, from the annotations of each image; all ids count from 1."""
    image_ids = range(1, len(annotations) + 1)
    pairs = [(image_id, annotation) for image_id in image_ids for annotation in annotations[image_id - 1]]
    return {
        "images": [{"id": i, "file_name": f"{i - 1:06d}.jpg", "width": size, "height": size} for i in image_ids],
        "annotations": [{"id": i, "image_id": image_id} | one for i, (image_id, one) in enumerate(pairs, 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(SCENE_KINDS, 1)],
    }


def describe(settings: Settings) -> dict[str, object]:
    """The contents of dataset.json: everything that determines the images; not the place or the number of processes."""
    source = b"".join(Path(file).read_bytes() for file in (__file__, toy_scenes.__file__))
    return {
        "settings": {name: value for name, value in asdict(settings).items() if name not in ("out", "num_workers")},
        "generator": {"sha256": hashlib.sha256(source).hexdigest(), "numpy": np.__version__, "pillow": PIL.__version__},
        "counts": count_images(settings) | count_scenes(settings),
        "teacher_task": TEACHER_TASK,
        "heldout_tasks": [task for task in TASKS if task != TEACHER_TASK],
        "classes": {task: list(kinds) for task, kinds in TASKS.items()},
    }


def check(settings: Settings) -> None:
    """Refuse settings that cannot give a data set, before anything is written."""
    if settings.out.exists():
        raise ValueError(f"{settings.out} exists already: remove it or choose another --out")
    if settings.seed < 0:
        raise ValueError(f"--seed is {settings.seed}: pass an integer from 0")
    if settings.num_workers < 1:
        raise ValueError(f"--num-workers is {settings.num_workers}: it must be at least 1")
    if settings.size < 16:
        raise ValueError(f"--size is {settings.size} px: shapes are distinguishable from 16 px on")
    if settings.scene_size < 48:
        raise ValueError(
            f"--scene-size is {settings.scene_size} px: shapes of a scene are distinguishable from 48 px on"
        )
    for folder, count in (count_images(settings) | count_scenes(settings)).items():
        num_classes = len((TASKS | {"scenes": SCENE_KINDS}).get(folder.split("/")[0], [None]))
        if count < num_classes:
            raise ValueError(f"{folder} would hold {count} images: pass at least {num_classes}, one of each class")


def leave_signals_to_parent() -> None:
    """Ignore Ctrl-C and termination in a worker: they reach the whole process group, and only the parent handles them.

    A worker that died while it held a lock of the pool would hang the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, exit_if_orphaned)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def start_jobs(pool: ProcessPoolExecutor, job: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
    """`pool.map`; Ctrl-C and termination, which would hang a pool that starts, wait until jobs are there."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        return pool.map(job, arguments, chunksize=32)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def exit_if_orphaned(*_: object) -> None:
    """Exit a terminated worker if its parent is gone."""
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        os._exit(1)


def make_toy_data(settings: Settings) -> None:
    """Write the data set beside `out`, and rename it to `out` when it is complete."""
    check(settings)
    jobs, scenes = list(list_jobs(count_images(settings))), count_scenes(settings)
    pool = ProcessPoolExecutor(settings.num_workers, initializer=leave_signals_to_parent)
    unfinished = settings.out.with_name(f".{settings.out.name}.{os.getpid()}.unfinished")
    unfinished.mkdir(parents=True)
    every = 0.5 if sys.stderr.isatty() else 10.0  # seconds; few progress bars in a log file
    progress = partial(tqdm, unit="image", mininterval=every)
    try:
        write = partial(write_image, unfinished, settings.seed, settings.size)
        for _ in progress(start_jobs(pool, write, jobs), total=len(jobs)):
            pass
        for folder, count in scenes.items():
            draw = partial(write_scene, unfinished, settings.seed, settings.scene_size, folder)
            annotations = list(progress(start_jobs(pool, draw, range(count)), total=count))
            boxes = unfinished / "scenes" / "annotations" / f"{Path(folder).name}.json"
            boxes.parent.mkdir(exist_ok=True)
            boxes.write_text(json.dumps(coco(annotations, settings.scene_size)) + "\n")
        if scenes:
            (unfinished / "scenes" / "classes.txt").write_text("\n".join(["background", *SCENE_KINDS]) + "\n")
        (unfinished / "dataset.json").write_text(json.dumps(describe(settings), indent=2) + "\n")
        unfinished.rename(settings.out)
    except BaseException:
        pool.shutdown(cancel_futures=True)  # waits for images being written: none may be written after the removal
        shutil.rmtree(unfinished)
        raise
    pool.shutdown()
    print(f"{settings.out}: {len(jobs) + sum(scenes.values())} images")


@report_errors
def main() -> None:
    """Read the command line and create the data set."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a terminated run cleans up like an interrupted one
    make_toy_data(tyro.cli(Settings))


if __name__ == "__main__":
    main()
