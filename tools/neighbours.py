"""What nets take for alike, where there are no labels: the nearest neighbours they share with a teacher, as pictures.

python tools/eval_ssl.py features --labels False --train PICTURES --checkpoint TEACHER --out runs/teacher-features
python tools/eval_ssl.py features --labels False --train PICTURES --checkpoint STUDENT --out runs/student-features
python tools/neighbours.py --teacher runs/teacher-features --nets runs/student-features --out runs/alike
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

from stillroom.backbone import format_table
from stillroom.backbone.command import plainly
from stillroom.backbone.files import replace_directory, write_file
from stillroom.eval_ssl.figures import draw_embedding, embed, framed
from stillroom.eval_ssl.neighbours import nearest_neighbours

RESULTS = "shared.json"
SHOWN = 5  # neighbours of each net on the sheet
QUERIES = 8  # rows of the sheet
SHARED, OTHER = "#2a8f4a", "#b9c0c8"  # frames
CELL, GAP, HEAD = 80, 16, 24  # pixels of the sheet


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Compare nets with a teacher by the nearest neighbours of the same pictures."""

    teacher: Path
    """Run of `eval_ssl.py features`."""
    nets: tuple[Path, ...]
    """Runs of the same command on the same pictures; the sheet shows the first one's neighbours."""
    out: Path
    """Folder to make: shared.json, neighbours.png, map-teacher.png and a map of the first net."""
    k: int = 10
    """Neighbours, by cosine."""
    seed: int = 0
    """Of the pictures that are shown."""


def read_features(run: Path) -> tuple[Float[Tensor, "n d"], tuple[Path, ...]]:
    """The features that a run has left, and the pictures they are of.

    Raises:
        ValueError: not a run of `eval_ssl.py features` with --format npy.
    """
    if not (run / "train.npy").is_file():
        raise ValueError(f"{run} holds no train.npy: give a run of `eval_ssl.py features`")
    with (run / "train.csv").open(newline="", encoding="utf-8") as opened:
        paths = tuple(Path(row["path"]) for row in csv.DictReader(opened))
    return torch.from_numpy(np.load(run / "train.npy")), paths


def share_of(ours: Int[Tensor, "n k"], theirs: Int[Tensor, "n k"]) -> float:
    """The share of the neighbours in `ours` that stand in the same row of `theirs` too."""
    return float((ours[:, :, None] == theirs[:, None, :]).any(dim=2).float().mean())


def compare(settings: Settings) -> dict[str, float]:
    """Write the shares and the pictures, and return the share of each net, and of chance.

    Raises:
        ValueError: an output that exists, runs on other pictures, or too few of them.
    """
    if settings.out.exists():
        raise ValueError(f"{settings.out} exists: choose another --out")
    taught, pictures = read_features(settings.teacher)
    if len(pictures) <= settings.k:
        raise ValueError(f"{settings.teacher} has {len(pictures)} pictures: {settings.k} neighbours need more")
    _, teachers = nearest_neighbours(taught, None, settings.k)
    found: list[Tensor] = []
    first: Tensor | None = None
    for run in settings.nets:
        features, same = read_features(run)
        if same != pictures:
            raise ValueError(f"{run} is of other pictures than {settings.teacher}: extract both from the same ones")
        first = features if first is None else first
        found.append(nearest_neighbours(features, None, settings.k)[1])
    assert first is not None, "tyro wants at least one"
    shares = {str(run): share_of(rows, teachers) for run, rows in zip(settings.nets, found, strict=True)}
    shares["chance"] = settings.k / (len(pictures) - 1)
    with replace_directory(settings.out) as aside:
        draw_sheet(aside / "neighbours.png", pictures, teachers, found[0], settings.seed)
        for name, features in {"map-teacher": taught, "map-student": first}.items():
            nothing = torch.zeros(len(pictures), dtype=torch.long)
            plane = embed(features, "pca")
            draw_embedding(aside / f"{name}.png", plane, pictures, nothing, ["a picture"], name, settings.seed)
        write_file(aside / RESULTS, json.dumps({"k": settings.k, "pictures": len(pictures), "shares": shares}) + "\n")
    return shares


def draw_sheet(
    path: Path, pictures: tuple[Path, ...], teachers: Int[Tensor, "n k"], students: Int[Tensor, "n k"], seed: int
) -> None:
    """Some pictures, the teacher's nearest ones and the student's; green: among the other's k nearest too."""
    order = np.random.default_rng([seed, len(pictures)]).permutation(len(pictures))[:QUERIES].tolist()
    width = CELL * (1 + 2 * SHOWN) + 2 * GAP
    sheet = Image.new("RGB", (width, HEAD + CELL * len(order)), "white")
    heads = ImageDraw.Draw(sheet)
    places = {
        "picture": 0,
        "nearest to the teacher": CELL + GAP,
        "nearest to the student": CELL * (1 + SHOWN) + 2 * GAP,
    }
    for words, left in places.items():
        heads.text((left + 2, 6), words, fill="black")
    for row, query in enumerate(order):
        top = HEAD + CELL * row
        sheet.paste(framed(pictures[query], OTHER), (0, top))
        for near, other, left in (
            (teachers[query], students[query], CELL + GAP),
            (students[query], teachers[query], CELL * (1 + SHOWN) + 2 * GAP),
        ):
            for column, image in enumerate(near[:SHOWN].tolist()):
                frame = SHARED if image in other.tolist() else OTHER
                sheet.paste(framed(pictures[image], frame), (left + CELL * column, top))
    sheet.save(path)


@plainly
def main() -> None:
    """Compare and print."""
    settings = tyro.cli(Settings, description=__doc__)
    shares = compare(settings)
    rows = [[name, f"{100 * share:.1f}"] for name, share in shares.items()]
    print(format_table(["net", f"of its {settings.k} nearest also the teacher's, %"], rows))


if __name__ == "__main__":
    main()
