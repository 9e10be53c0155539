"""Masks of images that nobody has labelled."""

from stillroom.seg_transfer import quiet  # noqa: F401  # before all that imports MMSegmentation

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
from stillroom.seg_transfer import plugin  # noqa: F401  # registers what the config names
from stillroom.seg_transfer.figures import palette, segment
from stillroom.seg_transfer.record import RESOLVED, latest_weights

OPACITY = 0.55  # of the mask on an overlay


def predict(run_directory: Path, images: Path, out: Path, *, device: DeviceName = "auto") -> Path:
    """Segment images with a trained run: OUT/masks of class indices, OUT/overlays to look at, OUT/classes.txt.

    Each image is looked at once, as it is: `--flip` and `--scales` are for measuring.

    Args:
        run_directory: of a run that is done.
        images: a folder, a file list (.txt), or one image.
        out: folder to make.
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
        raise ValueError(f"{run_directory} has no whole iter_*.pth: train it again")
    files = read_images(images)
    names = png_names(files)
    run = Run.start(device)
    resolved = Config.fromfile(str(run_directory / RESOLVED), format_python_code=False)
    resolved.model.backbone.init_cfg = None
    net = init_model(resolved, str(weights), device=str(run.device))
    classes = list(read_results(run_directory).extra["classes"])
    colours = palette(len(classes))
    progress = Progress(len(files), run, "predict")
    with replace_directory(out) as aside:
        (aside / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        for ((name, file),) in progress.over([pair] for pair in zip(names, files.paths, strict=True)):
            mask = segment(net, resolved, file)
            pixels = np.asarray(load_image(file))
            overlay = ((1 - OPACITY) * pixels + OPACITY * colours[mask]).astype(np.uint8)
            for folder, picture in (("masks", mask), ("overlays", overlay)):
                (aside / folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(aside / folder / name)
    run.close()
    return out
