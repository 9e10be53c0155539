"""Pictures of a detection: truth against what was found, and precision over recall."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image
from pycocotools import mask as rle

from stillroom.backbone.figures import plain, save
from stillroom.backbone.images import load_image
from stillroom.det_transfer.annotations import Images
from stillroom.det_transfer.detections import Detections
from stillroom.det_transfer.metrics import Measured

ROWS = 6  # images on a sheet
SHOWN = 0.5
"""Score from which a detection is drawn."""
NAMED = 24  # classes of a legend

Colour = tuple[float, float, float]


def palette(num_classes: int) -> list[Colour]:
    """A colour for each class."""
    wheel = colormaps["tab10" if num_classes <= 10 else "tab20" if num_classes <= 20 else "hsv"]
    places = [label if num_classes <= 20 else label / num_classes for label in range(num_classes)]
    return [(red, green, blue) for red, green, blue, _ in map(wheel, places)]


def draw_sheet(path: Path, images: Images, found: Sequence[Detections], classes: Sequence[str], title: str) -> None:
    """Images, evenly spread: on the left their true boxes, on the right those found with a score of 0.5 or more."""
    places = np.unique(np.linspace(0, len(images) - 1, ROWS).round().astype(int))
    figure = Figure(figsize=(9, 3.4 * len(places)))
    colours = palette(len(classes))
    for row, place in enumerate(places):
        image = images.rows[place]
        pixels = load_image(image.file)
        likely = found[place].above(SHOWN)
        wanted = [(box.x, box.y, box.width, box.height, box.label, "", box.mask) for box in image.boxes]
        for column, (name, boxes) in enumerate(
            ((image.file.name, wanted), (f"found with a score of {SHOWN} or more", drawable(likely)))
        ):
            axes = figure.add_subplot(len(places), 2, 2 * row + column + 1, xticks=[], yticks=[])
            axes.set_title(plain(f"{name}, {len(boxes)} boxes"), fontsize=8)
            draw_boxes(axes, pixels, boxes, colours)
    figure.suptitle(plain(title))
    figure.legend(
        handles=[Patch(color=colours[k], label=plain(name)) for k, name in enumerate(classes[:NAMED])],
        loc="lower center", ncols=8, fontsize=7, frameon=False,
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0.03, 1, 0.98))
    save(figure, path)


def drawable(found: Detections) -> list[tuple[Any, ...]]:
    """Left, upper edge, width, height, label, words and mask of each."""
    masks = found.masks or (None,) * len(found.boxes)
    return [
        (left, upper, right - left, lower - upper, int(label), f"{score:.2f}", mask)
        for (left, upper, right, lower), label, score, mask in zip(
            found.boxes.tolist(), found.labels, found.scores, masks, strict=True
        )
    ]


def draw_boxes(axes: Axes, pixels: Image.Image, boxes: Iterable[tuple[Any, ...]], colours: Sequence[Colour]) -> None:
    """An image and boxes on it, with masks where there are some."""
    shown = np.asarray(pixels, dtype=float) / 255
    for *_, label, _, mask in boxes:
        if mask is not None:
            inside = rle.decode(mask).astype(bool)
            shown[inside] = 0.5 * shown[inside] + 0.5 * np.asarray(colours[label])
    axes.imshow(shown)
    for x, y, width, height, label, words, _ in boxes:
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colours[label], linewidth=1.2))
        if words:
            axes.text(x, y - 1, words, fontsize=5, color="white", backgroundcolor=(*colours[label], 0.8))


def draw_overlay(path: Path, file: Path, found: Detections, classes: Sequence[str]) -> None:
    """An image with the boxes found in it, at its own resolution."""
    pixels, dpi = load_image(file), 100
    figure = Figure(figsize=(pixels.width / dpi, pixels.height / dpi), dpi=dpi)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    boxes = [(*box[:5], plain(f"{classes[box[4]]} {box[5]}"), box[6]) for box in drawable(found)]
    draw_boxes(axes, pixels, boxes, palette(len(classes)))
    axes.set_xlim(0, pixels.width)
    axes.set_ylim(pixels.height, 0)
    figure.savefig(path, dpi=dpi)


def draw_precision(path: Path, measured: Measured, title: str) -> None:
    """Precision over recall at IoU 0.5, a curve for each class; of more than 24 the mean alone is named."""
    figure = Figure(figsize=(6, 5))
    axes = figure.add_subplot(
        title=plain(title), xlabel="recall", ylabel="precision at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02)
    )
    recalls = np.linspace(0, 1, 101)
    colours = palette(len(measured.precision))
    for colour, (name, curve) in zip(colours, measured.precision.items(), strict=True):
        label = f"{plain(name)}: {100 * curve.mean():.1f} %" if len(measured.precision) <= NAMED else None
        axes.plot(recalls, curve, color=colour, linewidth=1.2, label=label)
    mean = np.mean(list(measured.precision.values()), axis=0)
    axes.plot(recalls, mean, color="black", linewidth=2, label=f"mean: {100 * mean.mean():.1f} %")
    axes.legend(fontsize=8, loc="lower left")
    save(figure, path)
