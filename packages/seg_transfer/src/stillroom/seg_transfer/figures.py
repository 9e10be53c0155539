"""Figures of a segmentation: image, truth, prediction, error."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.config import Config
from mmseg.apis import inference_model
from torch import nn

from stillroom.images.decode import load_image
from stillroom.runs.figures import escape, save
from stillroom.seg_transfer.data import SegmentationData
from stillroom.seg_transfer.masks import IGNORED, read_mask
from stillroom.seg_transfer.transforms import read_bgr

Mask = UInt8[np.ndarray, "h w"]
ROWS = 6  # images in a figure


def palette(num_classes: int) -> UInt8[np.ndarray, "256 3"]:
    """The colours of class indices: the first class dark, ignored pixels white."""
    colours = np.full((256, 3), 255, np.uint8)
    wheel = colormaps["tab20"](range(20)) if num_classes <= 21 else colormaps["hsv"](np.linspace(0, 1, num_classes))
    colours[1:num_classes] = (255 * np.asarray(wheel)[: num_classes - 1, :3]).astype(np.uint8)
    colours[0] = 40
    return colours


@torch.no_grad()
def segment(net: nn.Module, resolved: Config, image: Path) -> Mask:
    """Predict the class of every pixel of an image file.

    Args:
        net: MMSegmentation's model.
        resolved: its config.
        image: the file.

    Raises:
        BrokenImageError: an image that cannot be read.
    """
    net.cfg = resolved
    mode = net.training
    result: Any = inference_model(net.eval(), read_bgr(image))
    net.train(mode)
    return result.pred_sem_seg.data.squeeze(0).cpu().numpy().astype(np.uint8)


def draw_sheet(path: Path, net: nn.Module, resolved: Config, data: SegmentationData, title: str) -> None:
    """Draw some validation images with their truth, prediction and, in red, errors.

    Args:
        path: PNG to write.
        net: MMSegmentation's model.
        resolved: its config.
        data: whose validation images are drawn, evenly spread over the list.
        title: of the figure.
    """
    indices = np.unique(np.linspace(0, len(data.val.pairs) - 1, ROWS).round().astype(int))
    figure = Figure(figsize=(11, 2.6 * len(indices)))
    colours = palette(len(data.classes))
    for row, index in enumerate(indices):
        image, file = data.val.pairs[index]
        truth = read_mask(file, zero_ignored=data.zero_ignored)
        prediction = segment(net, resolved, image)
        pixels = np.asarray(load_image(image))
        wrong = (truth != prediction) & (truth != IGNORED)
        error = (0.35 * pixels).astype(np.uint8)
        error[wrong] = (230, 30, 30)
        share = wrong.sum() / max(1, (truth != IGNORED).sum())
        panels = {image.name: pixels, "truth": colours[truth], "prediction": colours[prediction]}
        panels[f"error: {100 * share:.1f} %"] = error
        for column, (name, picture) in enumerate(panels.items()):
            axes = figure.add_subplot(len(indices), 4, 4 * row + column + 1, xticks=[], yticks=[])
            axes.imshow(picture)
            axes.set_title(escape(name), fontsize=8)
    figure.suptitle(escape(title))
    figure.legend(handles=legend(data.classes, colours), loc="lower center", ncols=8, fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.04, 1, 0.97))
    save(figure, path)


def legend(classes: Sequence[str], colours: UInt8[np.ndarray, "256 3"]) -> list[Patch]:
    """Build the legend of class colours, for the first 24 classes."""
    return [Patch(color=colours[i] / 255, label=escape(name)) for i, name in enumerate(classes[:24])]
