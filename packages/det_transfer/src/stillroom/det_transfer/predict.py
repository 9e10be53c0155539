"""Predictions of a trained detector on new images."""

import json
import sys
from pathlib import Path
from typing import Any

from stillroom.backbone import load_checkpoint
from stillroom.backbone.atomic import refuse_existing, replace_directory
from stillroom.backbone.flags import DeviceName
from stillroom.det_transfer.annotations import refuse_thin
from stillroom.det_transfer.backends import find_backend
from stillroom.det_transfer.config import DetectConfig, refuse_untrusted
from stillroom.det_transfer.figures import draw_overlay
from stillroom.det_transfer.metrics import IouType, to_coco_annotations
from stillroom.det_transfer.record import CATEGORY_IDS
from stillroom.finetune.lifecycle import INITIAL
from stillroom.images import Source
from stillroom.images.decode import exif_orientation, open_image
from stillroom.images.files import png_names, read_images
from stillroom.runs import Run, read_results
from stillroom.runs.configs import load_config
from stillroom.runs.progress import Progress
from stillroom.runs.results import refuse_unfinished


def predict(
    run_directory: Path,
    images: Path,
    out: Path,
    *,
    score: float = 0.5,
    device: DeviceName = "auto",
    trust_run: bool = False,
) -> Path:
    """Detect objects with a finished run: OUT/detections.json in COCO's format, and overlays in OUT/overlays.

    Args:
        run_directory: of a finished run.
        images: a source of images, see `read_unlabelled` in stillroom-images, or one image.
        out: folder to create.
        score: lowest score of a detection that is kept, 0 to 1.
        device: to compute on.
        trust_run: whether the program of a run with a user's LazyConfig may be executed; see `refuse_untrusted`.

    Returns:
        `out`.

    Raises:
        ValueError: no finished run, no images, an image that cannot be read or is too thin, or `out` exists; the run
            was trained by Detectron2, which is not installed, or with a program.
    """
    refuse_existing(out)
    if not 0 <= score <= 1:
        raise ValueError(f"--score is {score}: it must lie in [0, 1]")
    refuse_unfinished(run_directory)
    refuse_untrusted(run_directory, trust_run)
    files = read_images(images)
    names = png_names(files)
    listing = [coco_entry(files, index) for index in range(len(files))]
    config = load_config(run_directory, DetectConfig)
    if config.framework_config is None:
        sizes = ((entry["width"], entry["height"]) for entry in listing)
        refuse_thin(((Path(files.where(index)), *size) for index, size in enumerate(sizes)), config.max_size)
    extra = read_results(run_directory).extra
    classes = list(extra["classes"])
    category_ids = extra.get(CATEGORY_IDS, [*range(1, len(classes) + 1)])
    if CATEGORY_IDS not in extra:
        print(f"{run_directory} does not hold the data set's category ids: they are counted from 1", file=sys.stderr)
    run = Run.start(device)
    backbone, _ = load_checkpoint(run_directory / INITIAL)
    predict_image = find_backend(config.backend).load_predictor(config, backbone, len(classes), run)
    rows: list[dict[str, Any]] = []
    progress = Progress(len(files), run, "predict")
    with replace_directory(out) as folder:
        for ((index, name),) in progress.over([pair] for pair in enumerate(names)):
            overlay = folder / "overlays" / name
            overlay.parent.mkdir(parents=True, exist_ok=True)
            with files.as_file(index) as file:
                detections = predict_image(file).above(score)
                draw_overlay(overlay, file, detections, classes)
            rows += detections.to_coco(listing[index]["id"], category_ids)
        kind: IouType = "segm" if any("segmentation" in row for row in rows) else "bbox"
        categories = [{"id": number, "name": name} for number, name in zip(category_ids, classes, strict=True)]
        content = {"images": listing, "annotations": to_coco_annotations(rows, kind), "categories": categories}
        (folder / "detections.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    run.close()
    return out


def coco_entry(files: Source, index: int) -> dict[str, Any]:
    """Describe an image in COCO's format.

    Its size is that of the image as its EXIF tag turns it: so detectors read it, and so the boxes are.

    Raises:
        BrokenImageError: it cannot be read.
    """
    with files.as_file(index) as file, open_image(file, files.where(index)) as opened:
        width, height = opened.size[::-1] if exif_orientation(opened) >= 5 else opened.size
    return {"id": index + 1, "file_name": files.name(index), "width": width, "height": height}
