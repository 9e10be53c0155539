"""Figures of an evaluation: nearest neighbours, all images in a plane, accuracy over shots."""

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

from stillroom.eval_ssl.config import Embedding
from stillroom.eval_ssl.extras import import_umap
from stillroom.eval_ssl.features import FeatureSets
from stillroom.images.decode import load_image
from stillroom.runs.figures import draw_confusion, escape, save

_LEGEND_CLASSES = 40  # no legend for more classes
_THUMBNAILS = 250  # images drawn in the plane
_NUM_QUERIES = 16  # rows of the sheet of neighbours
_NUM_NEIGHBOURS = 10  # columns of the sheet
_SIDE = 72  # of an image in the sheet, pixels
_CORRECT, _WRONG = "#2a8f4a", "#c8322b"  # frames: green and red


def draw_knn(
    folder: Path,
    features: FeatureSets,
    indices: Int[Tensor, "m n"],
    predicted: Int[Tensor, " m"],
    *,
    k: int,
    net: str,
    embedding: Embedding,
    seed: int,
) -> None:
    """Draw the figures of k-NN: confusion.png, neighbours.png and embedding.png.

    Args:
        folder: where the PNG files go.
        features: of the training images and the queries.
        indices: training rows of each query's neighbours, nearest first.
        predicted: class numbers predicted by k neighbours.
        k: neighbours that voted.
        net: name for the titles.
        embedding: projection to the plane.
        seed: of the drawn queries and thumbnails.
    """
    train, queries = features.train, features.queries
    targets, classes, images = queries.labels, features.classes, queries.files.encoded
    draw_confusion(folder / "confusion.png", targets, predicted, classes, f"{k}-NN of {net}")
    same_class = train.labels[indices] == targets[:, None]
    draw_query_sheet(
        folder / "neighbours.png", images, train.files.encoded, indices, same_class, predicted == targets, seed
    )
    plane = embed(queries.features, embedding, seed)
    title = f"{embedding.upper()} of {net}"
    draw_embedding(folder / "embedding.png", plane, images, targets, classes, title, seed)


def draw_query_sheet(
    path: Path,
    queries: Sequence[Path | bytes],
    train: Sequence[Path | bytes],
    indices: Int[Tensor, "m k"],
    same_class: Bool[Tensor, "m k"],
    correct: Bool[Tensor, " m"],
    seed: int,
) -> None:
    """Draw a sample of queries with their neighbours, incorrectly classified queries first.

    Args:
        path: the PNG to write.
        queries: images, m of them.
        train: images to find neighbours among.
        indices: each query's neighbours in `train`, nearest first.
        same_class: whether each of them is of the query's class.
        correct: whether the query was classified correctly.
        seed: of the sample.
    """
    sample = sample_queries(correct, seed)
    neighbours = [[train[i] for i in row] for row in indices[sample, :_NUM_NEIGHBOURS].tolist()]
    same = same_class[sample, :_NUM_NEIGHBOURS].tolist()
    draw_neighbours(path, [queries[i] for i in sample], neighbours, same, correct[sample].tolist())


def draw_neighbours(
    path: Path,
    queries: Sequence[Path | bytes],
    neighbours: Sequence[Sequence[Path | bytes]],
    same_class: Sequence[Sequence[bool]],
    correct: Sequence[bool],
) -> None:
    """Draw a row per query: the query and its nearest neighbours, framed green if of the query's class, else red.

    Args:
        path: the PNG to write.
        queries: images, m of them.
        neighbours: images for each query, nearest first.
        same_class: whether each of them is of the query's class.
        correct: whether the query was classified correctly: the colour of its own frame.
    """
    columns = 1 + max(map(len, neighbours))
    cell = _SIDE + 8
    sheet = Image.new("RGB", (columns * cell + 8, len(queries) * cell), "white")
    for row, query in enumerate(queries):
        sheet.paste(framed(query, _CORRECT if correct[row] else _WRONG), (0, row * cell))
        for column, (image, same) in enumerate(zip(neighbours[row], same_class[row], strict=True), start=1):
            sheet.paste(framed(image, _CORRECT if same else _WRONG), (column * cell + 8, row * cell))
    sheet.save(path)


def framed(image: Path | bytes, colour: str) -> Image.Image:
    """An image as a small square with a coloured frame."""
    return ImageOps.expand(ImageOps.fit(load_image(image), (_SIDE, _SIDE)), 3, colour)


def sample_queries(correct: Bool[Tensor, " m"], seed: int, num_queries: int = _NUM_QUERIES) -> list[int]:
    """Draw indices of queries: half of them incorrectly classified, where there are enough of both."""
    order = torch.from_numpy(np.random.default_rng([seed, len(correct)]).permutation(len(correct)))
    wrong, right = order[~correct[order]], order[correct[order]]
    num_wrong = min(len(wrong), max(num_queries // 2, num_queries - len(right)))
    return [*wrong[:num_wrong].tolist(), *right[: num_queries - num_wrong].tolist()]


def embed(features: Float[Tensor, "n d"], method: Embedding, seed: int = 0) -> Float[np.ndarray, "n 2"]:
    """Project L2-normalised features to a plane.

    Raises:
        ValueError: umap that is not installed.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    if method == "umap":
        reducer: Any = import_umap().UMAP(metric="cosine", random_state=seed, n_jobs=1)
        return np.asarray(reducer.fit_transform(unit.numpy()), dtype=np.float32)
    centred = (unit - unit.mean(dim=0)).double()
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    basis = vectors[:, -2:].flip(1)
    basis = basis * basis.gather(0, basis.abs().argmax(dim=0)[None]).sign()  # fixes the sign of eigenvectors
    plane = torch.zeros(len(features), 2)
    plane[:, : basis.shape[1]] = (centred @ basis).float()
    return plane.numpy()


def draw_embedding(
    path: Path,
    plane: Float[np.ndarray, "n 2"],
    images: Sequence[Path | bytes],
    labels: Int[Tensor, " n"],
    classes: Sequence[str],
    title: str,
    seed: int,
) -> None:
    """Draw all images as dots in the colour of their class, and some of them as thumbnails framed in it.

    Args:
        path: the PNG to write.
        plane: coordinates; see `embed`.
        images: n of them.
        labels: class numbers.
        classes: names.
        title: of the figure.
        seed: of the drawn thumbnails.
    """
    figure = Figure(figsize=(12, 12))
    axes = figure.add_subplot(title=escape(title), xticks=[], yticks=[])
    colours = colormaps["turbo"](np.linspace(0.05, 0.95, len(classes)))
    for label, name in enumerate(classes):
        dots = plane[(labels == label).numpy()]
        axes.scatter(dots[:, 0], dots[:, 1], s=6, color=colours[label], label=escape(name), linewidths=0)
    thumbnails = np.random.default_rng([seed, len(images)]).permutation(len(images))[:_THUMBNAILS]
    for i in thumbnails.tolist():
        image = OffsetImage(np.asarray(ImageOps.fit(load_image(images[i]), (24, 24))), zoom=1)
        frame = {"edgecolor": colours[int(labels[i])], "linewidth": 1.5}
        axes.add_artist(AnnotationBbox(image, plane[i].tolist(), pad=0.1, bboxprops=frame))
    if len(classes) <= _LEGEND_CLASSES:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=3, frameon=False)
    save(figure, path)


def draw_shots(path: Path, curves: Mapping[str, Mapping[int, tuple[float, float]]], title: str) -> None:
    """Draw accuracy over images per class, mean and standard deviation in percent, a line per checkpoint."""
    figure = Figure(figsize=(7, 5))
    axes = figure.add_subplot(title=title, xlabel="images per class", ylabel="top-1, %", xscale="log")
    for label, curve in curves.items():
        shots = sorted(curve)
        means, spreads = ([curve[k][i] for k in shots] for i in (0, 1))
        axes.errorbar(shots, means, yerr=spreads, marker="o", capsize=3, label=escape(label))
        axes.set_xticks(shots, [str(k) for k in shots], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save(figure, path)
