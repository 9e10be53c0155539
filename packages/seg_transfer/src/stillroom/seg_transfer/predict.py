"""Segment unlabelled images with a finished run."""

from stillroom.seg_transfer import quiet  # noqa: F401  # before anything imports MMSegmentation

# isort: split

from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmseg.apis import init_model
from PIL import Image

from stillroom.backbone import Run, read_results
from stillroom.backbone.atomic import refuse_existing, replace_directory
from stillroom.backbone.flags import DeviceName
from stillroom.backbone.image_files import png_names, read_images
from stillroom.backbone.images import load_image
from stillroom.backbone.progress import Progress
from stillroom.backbone.results import refuse_unfinished
from stillroom.seg_transfer import plugin  # noqa: F401  # registers the names of the config
from stillroom.seg_transfer.figures import palette, segment
from stillroom.seg_transfer.record import RESOLVED, latest_weights

OPACITY = 0.55  # of the mask on an overlay


def predict(run_directory: Path, images: Path, out: Path, *, device: DeviceName = "auto") -> Path:
    """Write OUT/masks of class indices, OUT/overlays to look at, and OUT/classes.txt.

    Each image is segmented in one view: `--flip` and `--scales` are for evaluation only.

    Args:
        run_directory: of a finished run.
        images: a folder, a file list (.txt), or one image.
        out: folder to create.
        device: to compute on.

    Returns:
        `out`.

    Raises:
        ValueError: no finished run, no images, one that cannot be read, or `out` exists.
    """
    refuse_existing(out)
    refuse_unfinished(run_directory)
    weights = latest_weights(run_directory)
    if weights is None:
        raise ValueError(f"{run_directory} has no complete iter_*.pth: train it again")
    files = read_images(images)
    names = png_names(files)
    run = Run.start(device)
    resolved = Config.fromfile(str(run_directory / RESOLVED), format_python_code=False)
    resolved.model.backbone.init_cfg = None
    net = init_model(resolved, str(weights), device=str(run.device))
    classes = list(read_results(run_directory).extra["classes"])
    colours = palette(len(classes))
    progress = Progress(len(files), run, "predict")
    with replace_directory(out) as folder:
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        for ((name, file),) in progress.over([pair] for pair in zip(names, files.paths, strict=True)):
            mask = segment(net, resolved, file)
            pixels = np.asarray(load_image(file))
            overlay = ((1 - OPACITY) * pixels + OPACITY * colours[mask]).astype(np.uint8)
            for subfolder, pixels_out in (("masks", mask), ("overlays", overlay)):
                (folder / subfolder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels_out).save(folder / subfolder / name)
    run.close()
    return out
