"""Pictures of a measurement: nearest neighbours, all images in a plane, accuracy over shots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image, ImageOps
from torch import Tensor

from stillroom.backbone.figures import plain, save
from stillroom.backbone.images import load_image
from stillroom.eval_ssl.config import Embedding
from stillroom.eval_ssl.settings import import_umap

_LEGEND_CLASSES = 40  # more of them have no legend
_THUMBNAILS = 250
_SHEET_ROWS = 16  # queries of the sheet, half of them wrong where there are as many
_SHEET_COLUMNS = 10
_SIDE = 72  # px of a picture in the sheet
_RIGHT, _WRONG = "#2a8f4a", "#c8322b"


def draw_neighbours(
    path: Path,
    queries: Sequence[Path],
    neighbours: Sequence[Sequence[Path]],
    same_class: Sequence[Sequence[bool]],
    answered: Sequence[bool],
) -> None:
    """A sheet: each row a query and its nearest neighbours, green frames where the class is the query's, red else.

    Args:
        path: the PNG to write.
        queries: images, m of them.
        neighbours: of each query, nearest first.
        same_class: whether each of them is of the query's class.
        answered: whether their vote was right: the frame of the query.
    """
    columns = 1 + max(map(len, neighbours))
    cell = _SIDE + 8
    sheet = Image.new("RGB", (columns * cell + 8, len(queries) * cell), "white")
    for row, query in enumerate(queries):
        sheet.paste(framed(query, _RIGHT if answered[row] else _WRONG), (0, row * cell))
        for column, (image, same) in enumerate(zip(neighbours[row], same_class[row], strict=True), start=1):
            sheet.paste(framed(image, _RIGHT if same else _WRONG), (column * cell + 8, row * cell))
    sheet.save(path)


def framed(path: Path, colour: str) -> Image.Image:
    """An image as a small square with a coloured frame."""
    return ImageOps.expand(ImageOps.fit(load_image(path), (_SIDE, _SIDE)), 3, colour)


def choose_queries(right: Bool[Tensor, " m"], seed: int, many: int = _SHEET_ROWS) -> list[int]:
    """Places of queries for the sheet: drawn, half of them answered wrongly where there are as many."""
    order = torch.from_numpy(np.random.default_rng([seed, len(right)]).permutation(len(right)))
    wrong, fine = order[~right[order]], order[right[order]]
    count = min(len(wrong), max(many // 2, many - len(fine)))
    return [*wrong[:count].tolist(), *fine[: many - count].tolist()]


def draw_nearest(
    path: Path,
    queries: Sequence[Path],
    known: Sequence[Path],
    rows: Int[Tensor, "m k"],
    same_class: Bool[Tensor, "m k"],
    right: Bool[Tensor, " m"],
    seed: int,
) -> None:
    """The sheet of drawn queries, first those that were answered wrongly."""
    chosen = choose_queries(right, seed)
    near, same = rows[chosen, :_SHEET_COLUMNS].tolist(), same_class[chosen, :_SHEET_COLUMNS].tolist()
    neighbours = [[known[i] for i in line] for line in near]
    draw_neighbours(path, [queries[i] for i in chosen], neighbours, same, right[chosen].tolist())


def embed(features: Float[Tensor, "n d"], how: Embedding, seed: int = 0) -> Float[np.ndarray, "n 2"]:
    """Features of unit length in a plane.

    Raises:
        ValueError: umap that is not installed.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    if how == "umap":
        reducer: Any = import_umap().UMAP(metric="cosine", random_state=seed, n_jobs=1)
        return np.asarray(reducer.fit_transform(unit.numpy()), dtype=np.float32)
    centred = (unit - unit.mean(dim=0)).double()
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    basis = vectors[:, -2:].flip(1)
    basis = basis * basis.gather(0, basis.abs().argmax(dim=0)[None]).sign()  # else the picture may turn over
    plane = torch.zeros(len(features), 2)
    plane[:, : basis.shape[1]] = (centred @ basis).float()
    return plane.numpy()


def draw_embedding(
    path: Path,
    plane: Float[np.ndarray, "n 2"],
    images: Sequence[Path],
    labels: Int[Tensor, " n"],
    classes: Sequence[str],
    title: str,
    seed: int,
) -> None:
    """All images as dots in the colour of their class, some of them as small pictures framed in it."""
    figure = Figure(figsize=(12, 12))
    axes = figure.add_subplot(title=plain(title), xticks=[], yticks=[])
    colours = colormaps["turbo"](np.linspace(0.05, 0.95, len(classes)))
    for label, name in enumerate(classes):
        dots = plane[(labels == label).numpy()]
        axes.scatter(dots[:, 0], dots[:, 1], s=6, color=colours[label], label=plain(name), linewidths=0)
    shown = np.random.default_rng([seed, len(images)]).permutation(len(images))[:_THUMBNAILS]
    for i in shown.tolist():
        picture = OffsetImage(np.asarray(ImageOps.fit(load_image(images[i]), (24, 24))), zoom=1)
        frame = {"edgecolor": colours[int(labels[i])], "linewidth": 1.5}
        axes.add_artist(AnnotationBbox(picture, plane[i].tolist(), pad=0.1, bboxprops=frame))
    if len(classes) <= _LEGEND_CLASSES:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=3, frameon=False)
    save(figure, path)


def draw_shots(path: Path, curves: Mapping[str, Mapping[int, tuple[float, float]]], title: str) -> None:
    """Accuracy over images per class, mean and spread in percent, a line for each net."""
    figure = Figure(figsize=(7, 5))
    axes = figure.add_subplot(title=title, xlabel="images per class", ylabel="top-1, %", xscale="log")
    for label, curve in curves.items():
        shots = sorted(curve)
        means, spreads = ([curve[k][i] for k in shots] for i in (0, 1))
        axes.errorbar(shots, means, yerr=spreads, marker="o", capsize=3, label=plain(label))
        axes.set_xticks(shots, [str(k) for k in shots], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save(figure, path)
