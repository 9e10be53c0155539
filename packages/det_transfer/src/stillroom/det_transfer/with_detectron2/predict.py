"""What a detector of Detectron2's finds: in all images that are measured on, and in any other."""

import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from stillroom.backbone import Backbone, BrokenImageError, Run
from stillroom.backbone.loading import unwrap_worker_errors
from stillroom.det_transfer.annotations import Images
from stillroom.det_transfer.backend import Predictor
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.detections import Detections, encode_plane
from stillroom.det_transfer.metrics import measure
from stillroom.det_transfer.with_detectron2.images import as_records, read_run

RESOLVED = "config.yaml"
"""Detectron2's LazyConfig of the run."""


class Collector(DatasetEvaluator):
    """Detectron2's evaluator that keeps what was found, and measures it as every backend of ours does.

    Args:
        run: directory of the run, for its images; None: `found` is all that is wanted.
    """

    def __init__(self, run: str | None = None) -> None:
        self.run = run
        self.reset()

    def reset(self) -> None:
        """Nothing was found yet."""
        self.found: dict[int, Detections] = {}

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Keep what was found in each image."""
        for given, output in zip(inputs, outputs, strict=True):
            self.found[given["image_id"]] = as_detections(output["instances"])

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Metrics in percent, as Detectron2 prints them."""
        parts = comm.all_gather(self.found)
        self.found = {key: found for part in parts for key, found in part.items()}
        if self.run is None or not comm.is_main_process():
            return None
        data = read_run(self.run)
        measured = measure(data.val, [self.found[row.id] for row in data.val.rows], data.classes)
        return {"bbox": {name: 100 * value for name, value in measured.metrics.items()}}


def predict_all(net: nn.Module, config: DetectConfig, cfg: DictConfig, images: Images) -> list[Detections]:
    """What a detector finds in every image, by Detectron2's evaluation loop; all processes get all of it."""
    loader = build_detection_test_loader(
        dataset=as_records(images), mapper=instantiate(cfg.dataloader.test.mapper), num_workers=config.workers
    )
    collector = Collector()
    with unwrap_worker_errors():
        inference_on_dataset(net, loader, collector)
    return [collector.found[row.id] for row in images.rows]


def as_detections(instances: Any) -> Detections:
    """Detectron2's instances, likeliest first."""
    instances = instances.to("cpu")
    order = instances.scores.argsort(descending=True, stable=True)
    masks = None
    if instances.has("pred_masks"):
        masks = tuple(encode_plane(plane) for plane in instances.pred_masks[order].numpy())
    return Detections(
        boxes=instances.pred_boxes.tensor[order].float().numpy().astype(float),
        scores=instances.scores[order].float().numpy().astype(float),
        labels=instances.pred_classes[order].numpy(), masks=masks,
    )  # fmt: skip


def load_predictor(config: DetectConfig, backbone: Backbone, num_classes: int, run: Run) -> Predictor:
    """A detector that was trained, image file -> what it finds.

    Args:
        config: of its run.
        backbone: that it began with.
        num_classes: without background.
        run: this process.
    """
    cfg = load_resolved(config.out)
    net = instantiate(cfg.model).to(run.device).eval()
    logging.getLogger("fvcore").setLevel(logging.WARNING)
    DetectionCheckpointer(net).load(str(config.out / "model_final.pth"))
    mapper = instantiate(cfg.dataloader.test.mapper)

    def find_in(file: Path) -> Detections:
        try:
            given = mapper({"file_name": str(file)})
        except OSError as error:  # of a user's own mapper
            raise BrokenImageError(f"{file} cannot be read as an image: {error}") from error
        with torch.no_grad():
            (output,) = net([given])
        return as_detections(output["instances"])

    return find_in


def load_resolved(out: Path) -> DictConfig:
    """The LazyConfig of a run; LazyConfig.save pickles one that YAML cannot hold, such as a user's with a lambda."""
    pickled = out / f"{RESOLVED}.pkl"
    if pickled.exists():
        return pickle.loads(pickled.read_bytes())  # noqa: S301  # as much a program as the .yaml, which is read with tags
    return LazyConfig.load(str(out / RESOLVED))
