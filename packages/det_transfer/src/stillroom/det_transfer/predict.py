"""Predictions of a trained detector on new images."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from stillroom.backbone import BrokenImageError, Run, load_checkpoint, read_results
from stillroom.backbone.atomic import refuse_existing, replace_directory
from stillroom.backbone.configs import load_config
from stillroom.backbone.finetune.lifecycle import INITIAL
from stillroom.backbone.flags import DeviceName
from stillroom.backbone.image_files import png_names, read_images
from stillroom.backbone.images import has_exif_orientation
from stillroom.backbone.progress import Progress
from stillroom.backbone.results import refuse_unfinished
from stillroom.det_transfer.backends import find_backend
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.figures import draw_overlay
from stillroom.det_transfer.metrics import IouType, to_coco_annotations


def predict(run_directory: Path, images: Path, out: Path, *, score: float = 0.5, device: DeviceName = "auto") -> Path:
    """Detect objects with a finished run: OUT/detections.json in COCO's format, and overlays in OUT/overlays.

    Args:
        run_directory: of a finished run.
        images: a folder, a file list (.txt), or one image.
        out: folder to create.
        score: lowest score of a detection that is kept, 0 to 1.
        device: to compute on.

    Returns:
        `out`.

    Raises:
        ValueError: no finished run, no images, an image that cannot be read or is rotated by its EXIF tag, or `out`
            exists; the run was trained by Detectron2, which is not installed.
    """
    refuse_existing(out)
    if not 0 <= score <= 1:
        raise ValueError(f"--score is {score}: it must lie in [0, 1]")
    refuse_unfinished(run_directory)
    files = read_images(images)
    names = png_names(files)
    listing = [coco_entry(number, file, files.root) for number, file in enumerate(files.paths, start=1)]
    run = Run.start(device)
    classes = list(read_results(run_directory).extra["classes"])
    config = load_config(run_directory, DetectConfig)
    backbone, _ = load_checkpoint(run_directory / INITIAL)
    predict_image = find_backend(config.backend).load_predictor(config, backbone, len(classes), run)
    rows: list[dict[str, Any]] = []
    progress = Progress(len(files), run, "predict")
    with replace_directory(out) as folder:
        pairs = zip(listing, names, files.paths, strict=True)
        for ((entry, name, file),) in progress.over([pair] for pair in pairs):
            detections = predict_image(file).above(score)
            rows += detections.to_coco(entry["id"])
            overlay = folder / "overlays" / name
            overlay.parent.mkdir(parents=True, exist_ok=True)
            draw_overlay(overlay, file, detections, classes)
        kind: IouType = "segm" if any("segmentation" in row for row in rows) else "bbox"
        categories = [{"id": label, "name": name} for label, name in enumerate(classes, start=1)]
        content = {"images": listing, "annotations": to_coco_annotations(rows, kind), "categories": categories}
        (folder / "detections.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    run.close()
    return out


def coco_entry(number: int, file: Path, root: Path) -> dict[str, Any]:
    """Describe an image in COCO's format.

    Raises:
        ValueError: it is rotated by its EXIF tag.
        BrokenImageError: it cannot be read.
    """
    try:
        with Image.open(file) as opened:
            if has_exif_orientation(opened):
                raise ValueError(f"{file} is rotated by its EXIF tag: save it upright")
            name = file.relative_to(root).as_posix()
            return {"id": number, "file_name": name, "width": opened.width, "height": opened.height}
    except (OSError, Image.DecompressionBombError) as error:
        raise BrokenImageError(f"{file} cannot be read as an image: {error}") from error
