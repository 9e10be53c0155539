"""Figures of a run: true and predicted boxes, and precision-recall curves."""

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

from stillroom.det_transfer.annotations import Images
from stillroom.det_transfer.detections import Detections
from stillroom.det_transfer.metrics import DetectionMetrics
from stillroom.images.decode import load_image
from stillroom.runs.figures import escape, save

NUM_IMAGES = 6
"""Images on a sheet."""
MIN_SCORE = 0.5
"""Lowest score of a detection that is drawn."""
MAX_LEGEND = 24
"""Classes in a legend, at most."""

Colour = tuple[float, float, float]


def palette(num_classes: int) -> list[Colour]:
    """A colour for each class."""
    colour_map = colormaps["tab10" if num_classes <= 10 else "tab20" if num_classes <= 20 else "hsv"]
    positions = [label if num_classes <= 20 else label / num_classes for label in range(num_classes)]
    return [(red, green, blue) for red, green, blue, _ in map(colour_map, positions)]


def draw_sheet(
    path: Path, images: Images, predictions: Sequence[Detections], classes: Sequence[str], title: str
) -> None:
    """Draw evenly spread images: on the left their true boxes, on the right detections with a score of 0.5 or more."""
    indices = np.unique(np.linspace(0, len(images) - 1, NUM_IMAGES).round().astype(int))
    figure = Figure(figsize=(9, 3.4 * len(indices)))
    colours = palette(len(classes))
    for row, index in enumerate(indices):
        image = images.rows[index]
        pixels = load_image(image.file)
        truth = [(box.x, box.y, box.width, box.height, box.label, "", box.mask) for box in image.boxes]
        predicted = drawable(predictions[index].above(MIN_SCORE))
        for column, (name, boxes) in enumerate(
            ((image.file.name, truth), (f"predicted with a score of {MIN_SCORE} or more", predicted))
        ):
            axes = figure.add_subplot(len(indices), 2, 2 * row + column + 1, xticks=[], yticks=[])
            axes.set_title(escape(f"{name}, {len(boxes)} boxes"), fontsize=8)
            draw_boxes(axes, pixels, boxes, colours)
    figure.suptitle(escape(title))
    figure.legend(
        handles=[Patch(color=colours[k], label=escape(name)) for k, name in enumerate(classes[:MAX_LEGEND])],
        loc="lower center",
        ncols=8,
        fontsize=7,
        frameon=False,
    )
    figure.tight_layout(rect=(0, 0.03, 1, 0.98))
    save(figure, path)


def drawable(detections: Detections) -> list[tuple[Any, ...]]:
    """Left edge, upper edge, width, height, label, caption and mask of each detection."""
    masks = detections.masks or (None,) * len(detections.boxes)
    return [
        (left, upper, right - left, lower - upper, int(label), f"{score:.2f}", mask)
        for (left, upper, right, lower), label, score, mask in zip(
            detections.boxes.tolist(), detections.labels, detections.scores, masks, strict=True
        )
    ]


def draw_boxes(axes: Axes, pixels: Image.Image, boxes: Iterable[tuple[Any, ...]], colours: Sequence[Colour]) -> None:
    """Draw an image with boxes on it, and masks where there are any."""
    canvas = np.asarray(pixels, dtype=float) / 255
    for *_, label, _, mask in boxes:
        if mask is not None:
            inside = rle.decode(mask).astype(bool)
            canvas[inside] = 0.5 * canvas[inside] + 0.5 * np.asarray(colours[label])
    axes.imshow(canvas)
    for x, y, width, height, label, caption, _ in boxes:
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colours[label], linewidth=1.2))
        if caption:
            axes.text(x, y - 1, caption, fontsize=5, color="white", backgroundcolor=(*colours[label], 0.8))


def draw_overlay(path: Path, file: Path, detections: Detections, classes: Sequence[str]) -> None:
    """Draw an image with its detections, at its own resolution."""
    pixels, dpi = load_image(file), 100
    figure = Figure(figsize=(pixels.width / dpi, pixels.height / dpi), dpi=dpi)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    boxes = [(*box[:5], escape(f"{classes[box[4]]} {box[5]}"), box[6]) for box in drawable(detections)]
    draw_boxes(axes, pixels, boxes, palette(len(classes)))
    axes.set_xlim(0, pixels.width)
    axes.set_ylim(pixels.height, 0)
    figure.savefig(path, dpi=dpi)


def draw_precision(path: Path, metrics: DetectionMetrics, title: str) -> None:
    """Draw a precision-recall curve for each class at IoU 0.5; beyond 24 classes the legend names the mean alone."""
    figure = Figure(figsize=(6, 5))
    axes = figure.add_subplot(
        title=escape(title), xlabel="recall", ylabel="precision at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02)
    )
    recalls = np.linspace(0, 1, 101)
    colours = palette(len(metrics.precision))
    for colour, (name, curve) in zip(colours, metrics.precision.items(), strict=True):
        label = f"{escape(name)}: {100 * curve.mean():.1f} %" if len(metrics.precision) <= MAX_LEGEND else None
        axes.plot(recalls, curve, color=colour, linewidth=1.2, label=label)
    mean = np.mean(list(metrics.precision.values()), axis=0)
    axes.plot(recalls, mean, color="black", linewidth=2, label=f"mean: {100 * mean.mean():.1f} %")
    axes.legend(fontsize=8, loc="lower left")
    save(figure, path)
