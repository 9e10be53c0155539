"""Pictures of a segmentation: image, truth, answer, error."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.config import Config
from mmseg.apis import inference_model
from torch import nn

from stillroom.backbone.figures import plain, save
from stillroom.backbone.images import load_image
from stillroom.seg_transfer.data import IGNORED, SegmentationData
from stillroom.seg_transfer.transforms import read_bgr

Mask = UInt8[np.ndarray, "h w"]
ROWS = 6  # images on a sheet


def palette(num_classes: int) -> UInt8[np.ndarray, "256 3"]:
    """Colours by index: the first class dark, ignored pixels white."""
    colours = np.full((256, 3), 255, np.uint8)
    wheel = colormaps["tab20"](range(20)) if num_classes <= 21 else colormaps["hsv"](np.linspace(0, 1, num_classes))
    colours[1:num_classes] = (255 * np.asarray(wheel)[: num_classes - 1, :3]).astype(np.uint8)
    colours[0] = 40
    return colours


@torch.no_grad()
def segment(net: nn.Module, resolved: Config, image: Path) -> Mask:
    """The class of every pixel of an image file.

    Args:
        net: MMSegmentation's model.
        resolved: its config.
        image: file.

    Raises:
        BrokenImageError: an image that cannot be read.
    """
    net.cfg = resolved
    mode = net.training
    found: Any = inference_model(net.eval(), read_bgr(image))
    net.train(mode)
    return found.pred_sem_seg.data.squeeze(0).cpu().numpy().astype(np.uint8)


def draw_sheet(path: Path, net: nn.Module, resolved: Config, data: SegmentationData, title: str) -> None:
    """Validation images, evenly spread: image, truth, answer, and in red where the answer is wrong."""
    places = np.unique(np.linspace(0, len(data.val.pairs) - 1, ROWS).round().astype(int))
    figure = Figure(figsize=(11, 2.6 * len(places)))
    colours = palette(len(data.classes))
    for row, place in enumerate(places):
        image, file = data.val.pairs[place]
        truth = mmcv.imread(str(file), flag="unchanged", backend="pillow").squeeze()
        if data.zero_ignored:
            truth = np.where(truth == IGNORED, IGNORED, truth - 1).astype(np.uint8)  # 0 turns to 255
        answer = segment(net, resolved, image)
        pixels = np.asarray(load_image(image))
        wrong = (truth != answer) & (truth != IGNORED)
        error = (0.35 * pixels).astype(np.uint8)
        error[wrong] = (230, 30, 30)
        share = wrong.sum() / max(1, (truth != IGNORED).sum())
        shown = {image.name: pixels, "truth": colours[truth], "answer": colours[answer]}
        shown[f"error: {100 * share:.1f} %"] = error
        for column, (name, picture) in enumerate(shown.items()):
            axes = figure.add_subplot(len(places), 4, 4 * row + column + 1, xticks=[], yticks=[])
            axes.imshow(picture)
            axes.set_title(plain(name), fontsize=8)
    figure.suptitle(plain(title))
    figure.legend(handles=legend(data.classes, colours), loc="lower center", ncols=8, fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.04, 1, 0.97))
    save(figure, path)


def legend(classes: Sequence[str], colours: UInt8[np.ndarray, "256 3"]) -> list[Patch]:
    """The colour of each class; of more than 24 only the first."""
    return [Patch(color=colours[i] / 255, label=plain(name)) for i, name in enumerate(classes[:24])]
