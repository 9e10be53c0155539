"""Predictions of a Detectron2 detector: for the validation images of a run, and for any image file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from stillroom.det_transfer.annotations import Images
from stillroom.det_transfer.backends.detectron2.images import as_records, read_run
from stillroom.det_transfer.backends.detectron2.saved import load_state
from stillroom.det_transfer.backends.protocol import Predictor
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.detections import Detections, encode_binary_mask
from stillroom.det_transfer.metrics import compute_metrics
from stillroom.images import BrokenImageError
from stillroom.images.loaders import unwrap_worker_errors
from stillroom.runs import Run
from stillroom.runs.hardware import choose_workers


class Collector(DatasetEvaluator):
    """An evaluator of Detectron2's that collects the detections, and computes the metrics of our packages.

    Args:
        run: run directory, for its images; None: `evaluate` only gathers the detections.
    """

    def __init__(self, run: str | None = None) -> None:
        self.run = run
        self.reset()

    def reset(self) -> None:
        """Drop all detections."""
        self.predictions: dict[int, Detections] = {}

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Keep the detections in each image of a batch."""
        for record, output in zip(inputs, outputs, strict=True):
            self.predictions[record["image_id"]] = as_detections(output["instances"])

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Gather the detections of all processes, and return metrics in percent, as Detectron2 prints them."""
        parts = comm.all_gather(self.predictions)
        self.predictions = {image_id: detections for part in parts for image_id, detections in part.items()}
        if self.run is None or not comm.is_main_process():
            return None
        data = read_run(self.run)
        predictions = [self.predictions[row.id] for row in data.val.rows]
        metrics = compute_metrics(data.val, predictions, data.classes).metrics
        return {"bbox": {name: 100 * value for name, value in metrics.items()}}


def predict_all(net: nn.Module, config: DetectConfig, cfg: DictConfig, images: Images) -> list[Detections]:
    """Predict every image in Detectron2's evaluation loop; each process gets all the predictions."""
    loader = build_detection_test_loader(
        dataset=as_records(images),
        mapper=instantiate(cfg.dataloader.test.mapper),
        num_workers=choose_workers(config.workers),
    )
    collector = Collector()
    with unwrap_worker_errors():
        inference_on_dataset(net, loader, collector)
    return [collector.predictions[row.id] for row in images.rows]


def as_detections(instances: Any) -> Detections:
    """Convert Detectron2's instances, highest score first."""
    instances = instances.to("cpu")
    order = instances.scores.argsort(descending=True, stable=True)
    masks = None
    if instances.has("pred_masks"):
        masks = tuple(encode_binary_mask(mask) for mask in instances.pred_masks[order].numpy())
    return Detections(
        boxes=instances.pred_boxes.tensor[order].float().numpy().astype(float),
        scores=instances.scores[order].float().numpy().astype(float),
        labels=instances.pred_classes[order].numpy(),
        masks=masks,
    )


def build_predictor(cfg: DictConfig, out: Path, run: Run) -> Predictor:
    """Build the detector of a finished run, with its last weights.

    Args:
        cfg: of the run.
        out: its directory.
        run: this process.
    """
    net = instantiate(cfg.model).to(run.device).eval()
    net.load_state_dict(load_state(out / "model_final.pth")["model"])
    mapper = instantiate(cfg.dataloader.test.mapper)

    def predict_file(file: Path) -> Detections:
        try:
            record = mapper({"file_name": str(file)})
        except OSError as error:  # from a user's own mapper
            raise BrokenImageError(f"{file} cannot be read as an image: {error}") from error
        with torch.no_grad():
            (output,) = net([record])
        return as_detections(output["instances"])

    return predict_file
