"""Neighbour agreement of students with a teacher, from stored features; its sheet and maps of images."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

from stillroom.backbone.atomic import replace_directory, write_file
from stillroom.distill.agreement import neighbour_agreement
from stillroom.eval_ssl.figures import draw_embedding, embed, framed
from stillroom.eval_ssl.neighbours import nearest_neighbours
from stillroom.images import read_unlabelled
from stillroom.images.labels import Columns
from stillroom.runs.results import read_results

RESULTS = "agreement.json"
NUM_SHOWN = 5  # neighbours of each net on the sheet
NUM_QUERIES = 8  # rows of the sheet
SHARED, OTHER = "#2a8f4a", "#b9c0c8"  # colours of frames
CELL, GAP, HEAD = 80, 16, 24  # pixels of the sheet


def read_features(run: Path) -> tuple[Float[Tensor, "n d"], tuple[Path, ...]]:
    """Read the features of a run of `eval_ssl.py features`, and the paths of their images."""
    with (run / "train.csv").open(newline="", encoding="utf-8") as opened:
        paths = tuple(Path(row["path"]) for row in csv.DictReader(opened))
    return torch.from_numpy(np.load(run / "train.npy")), paths


def read_images(run: Path, paths: tuple[Path, ...]) -> Sequence[Path | bytes]:
    """The images of a run by their paths: files of this machine, or what its archive or data set holds by these names.

    Raises:
        ValueError: neither, any more.
    """
    if paths[0].is_file():
        return paths
    config = read_results(run).made_by.config
    source = read_unlabelled(config["train"], Columns(**config.get("columns", {})))
    index_of = {path: index for index, path in enumerate(source.paths)}
    if absent := [path for path in paths if path not in index_of]:
        raise ValueError(f"{config['train']} does not hold {absent[0]} of {run} any more: extract the features again")
    return source.subset([index_of[path] for path in paths]).encoded


def compare(teacher_run: Path, runs: Sequence[Path], out: Path, *, k: int, seed: int) -> dict[str, float]:
    """Write the figures and the `neighbour_agreement` of each net with the teacher; returns the latter by net.

    Args:
        teacher_run: of `eval_ssl.py features`.
        runs: of the nets, on the same images; the sheet shows the neighbours of the first.
        out: folder to create.
        k: number of neighbours.
        seed: of the choice of images that are shown.

    Raises:
        ValueError: runs on different images, or too few images.
    """
    teacher, paths = read_features(teacher_run)
    if len(paths) <= 2 * k:
        raise ValueError(f"{teacher_run} has {len(paths)} images: --k {k} needs more than {2 * k}")
    students = []
    for run in runs:
        features, run_paths = read_features(run)
        if run_paths != paths:
            raise ValueError(f"{run} and {teacher_run} have different images: extract both from the same ones")
        students.append(features)
    agreement = {
        str(run): neighbour_agreement(features, teacher, k) for run, features in zip(runs, students, strict=True)
    }
    images = read_images(teacher_run, paths)
    with replace_directory(out) as temporary:
        rows = [nearest_neighbours(features, None, k)[1] for features in (teacher, students[0])]
        draw_sheet(temporary / "neighbours.png", images, *rows, seed)
        unlabelled = torch.zeros(len(images), dtype=torch.long)
        for name, features in {"map-teacher": teacher, "map-student": students[0]}.items():
            plane = embed(features, "pca")
            draw_embedding(temporary / f"{name}.png", plane, images, unlabelled, ["an image"], name, seed)
        results = {"k": k, "images": len(images), "agreement": agreement}
        write_file(temporary / RESULTS, json.dumps(results, indent=2) + "\n")
    return agreement


def draw_sheet(
    path: Path, images: Sequence[Path | bytes], teachers: Int[Tensor, "n k"], students: Int[Tensor, "n k"], seed: int
) -> None:
    """Draw some images with their nearest ones by teacher and student; green: also among the other net's k nearest."""
    order = np.random.default_rng([seed, len(images)]).permutation(len(images))[:NUM_QUERIES].tolist()
    width = CELL * (1 + 2 * NUM_SHOWN) + 2 * GAP
    sheet = Image.new("RGB", (width, HEAD + CELL * len(order)), "white")
    heads = ImageDraw.Draw(sheet)
    columns = {
        "image": 0,
        "nearest to the teacher": CELL + GAP,
        "nearest to the student": CELL * (1 + NUM_SHOWN) + 2 * GAP,
    }
    for words, left in columns.items():
        heads.text((left + 2, 6), words, fill="black")
    for row, query in enumerate(order):
        top = HEAD + CELL * row
        sheet.paste(framed(images[query], OTHER), (0, top))
        for near, other, left in (
            (teachers[query], students[query], CELL + GAP),
            (students[query], teachers[query], CELL * (1 + NUM_SHOWN) + 2 * GAP),
        ):
            for column, image in enumerate(near[:NUM_SHOWN].tolist()):
                frame = SHARED if image in other.tolist() else OTHER
                sheet.paste(framed(images[image], frame), (left + CELL * column, top))
    sheet.save(path)
