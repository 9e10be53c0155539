"""Segment unlabelled images with a finished run."""

from stillroom.seg_transfer import quiet  # noqa: F401  # before anything imports MMSegmentation

# isort: split

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmseg.apis import init_model
from PIL import Image
from torch import nn

from stillroom.backbone import load_checkpoint
from stillroom.backbone.atomic import refuse_existing, replace_directory
from stillroom.backbone.checkpoint import load_heads
from stillroom.backbone.flags import DeviceName
from stillroom.images.decode import load_image
from stillroom.images.files import png_names, read_images
from stillroom.runs import Run, read_results
from stillroom.runs.configs import load_config
from stillroom.runs.progress import Progress
from stillroom.runs.results import refuse_unfinished
from stillroom.seg_transfer import plugin  # noqa: F401  # registers the names of the config
from stillroom.seg_transfer.bridge import build_bridge
from stillroom.seg_transfer.config import SegmentConfig
from stillroom.seg_transfer.figures import palette, segment
from stillroom.seg_transfer.recipe import INFERENCE, build_model
from stillroom.seg_transfer.record import BACKBONE, CHECKPOINT, DECODER, RESOLVED
from stillroom.seg_transfer.states import latest_weights, load_state, refuse_user_config

OPACITY = 0.55  # of the mask on an overlay


def predict(
    run_directory: Path, images: Path, out: Path, *, device: DeviceName = "auto", trust_run: bool = False
) -> Path:
    """Write OUT/masks of class indices, OUT/overlays to look at, and OUT/classes.txt.

    Each image is segmented in one view: `--flip` and `--scales` are for evaluation only. An image that its EXIF tag
    turns is segmented as it is seen, and its mask lies so.

    Args:
        run_directory: of a finished run.
        images: a source of images, see `read_unlabelled` in stillroom-images, or one image.
        out: folder to create.
        device: to compute on.
        trust_run: run the code in the run directory, config.py and pickled states; see `load_trusted`.

    Returns:
        `out`.

    Raises:
        ValueError: no finished run, one that needs `trust_run`, no images, one that cannot be read, or `out` exists.
    """
    refuse_existing(out)
    refuse_unfinished(run_directory)
    files = read_images(images)
    names = png_names(files)
    classes = list(read_results(run_directory).extra["classes"])
    run = Run.start(device)
    load = load_trusted if trust_run else load_segmentor
    net, resolved = load(run_directory, len(classes), str(run.device))
    colours = palette(len(classes))
    progress = Progress(len(files), run, "predict")
    with replace_directory(out) as folder:
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        for ((index, name),) in progress.over([pair] for pair in enumerate(names)):
            with files.as_file(index) as file:
                mask = segment(net, resolved, file)
                pixels = np.asarray(load_image(file))
            overlay = ((1 - OPACITY) * pixels + OPACITY * colours[mask]).astype(np.uint8)
            for subfolder, pixels_out in (("masks", mask), ("overlays", overlay)):
                (folder / subfolder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels_out).save(folder / subfolder / name)
    run.close()
    return out


def load_segmentor(run_directory: Path, num_classes: int, device: str) -> tuple[nn.Module, Config]:
    """Build the model of a run from its config.json, and fill it from its checkpoint: no code of the run is run.

    Runs of versions before 0.4 keep the decoder in MMEngine's state only, of which tensors and plain values are read.

    Args:
        run_directory: of a finished run.
        num_classes: that it predicts.
        device: to put it on.

    Returns:
        MMSegmentation's model, and as much of its config as inference needs.

    Raises:
        ValueError: a run by a config of MMSegmentation, tensors that do not fit, or a damaged file.
    """
    config = load_config(run_directory, SegmentConfig)
    refuse_user_config(run_directory, config)
    backbone, manifest = load_checkpoint(run_directory / CHECKPOINT)
    bridge = build_bridge(backbone.spec, output_stride=config.output_stride, atrous=config.atrous, frozen=config.frozen)
    model = build_model(config, bridge, num_classes, Path(), "BN")
    pipeline = [dict(step) for step in INFERENCE]
    resolved = Config({"default_scope": "mmseg", "model": model, "test_pipeline": pipeline}, format_python_code=False)
    net: Any = init_model(resolved, device=device)
    if DECODER in manifest.heads:
        tensors = load_heads(run_directory / CHECKPOINT, DECODER)
        tensors |= {f"{BACKBONE}{name}": tensor for name, tensor in bridge.to_framework(backbone)[0].items()}
    else:
        tensors = load_state(str(find_weights(run_directory)))["state_dict"]
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"the weights of {run_directory} do not fit its config.json: {error}") from error
    return net, resolved


def load_trusted(run_directory: Path, num_classes: int, device: str) -> tuple[nn.Module, Config]:
    """Build the model of a run by its config.py, which is a program, and load MMEngine's state, which is a pickle.

    Args, Returns: see `load_segmentor`.

    Raises:
        ValueError: no complete state.
    """
    weights = find_weights(run_directory)
    resolved = Config.fromfile(str(run_directory / RESOLVED), format_python_code=False)
    resolved.model.backbone.init_cfg = None
    return init_model(resolved, str(weights), device=device), resolved


def find_weights(run_directory: Path) -> Path:
    """Find MMEngine's last complete state in a run directory; ValueError if there is none."""
    weights = latest_weights(run_directory)
    if weights is None:
        raise ValueError(f"{run_directory} has no complete iter_*.pth: train it again")
    return weights
