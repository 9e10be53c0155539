"""Predictions of a torchvision detector: for the validation images of a run, and for any image file."""

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.backbone import Backbone, InputSpec
from stillroom.backbone.tensor_files import load_tensors
from stillroom.det_transfer.annotations import Images
from stillroom.det_transfer.backends.protocol import Predictor
from stillroom.det_transfer.backends.torchvision.images import BoxedImages, build_evaluation_loader
from stillroom.det_transfer.backends.torchvision.nets import build_detector, set_image_sizes
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import refuse_broken
from stillroom.det_transfer.detections import Detections, encode_binary_mask
from stillroom.images.decode import load_image
from stillroom.runs import Run
from stillroom.runs.progress import Progress
from stillroom.runs.run_files import STATE

MASK_THRESHOLD = 0.5


def predict_all(model: nn.Module, config: DetectConfig, spec: InputSpec, images: Images, run: Run) -> list[Detections]:
    """Predict every image, split over the processes; each process gets all the predictions."""
    dataset = BoxedImages(images, spec)
    predictions: dict[int, Detections] = {}
    progress = Progress(len(images), run, "test")
    for batch in progress.over(build_evaluation_loader(dataset, run, config.workers)):
        ((index, pixels, _),) = refuse_broken(batch)
        predictions[index] = predict_image(model, config, pixels, run.device)
    gathered = {index: detections for part in run.gather(predictions) for index, detections in part.items()}
    return [gathered[index] for index in range(len(images))]


@torch.no_grad()
def predict_image(model: nn.Module, config: DetectConfig, pixels: Tensor, device: torch.device) -> Detections:
    """Predict one image, in float32 as Detectron2 does, whatever precision the model was trained in.

    Args:
        model: a torchvision detector.
        config: of its run.
        pixels: (3, h, w) uint8, in the backbone's channel order.
        device: of the model.
    """
    mode = model.training
    model.eval()
    set_image_sizes(model, (config.test_size,))
    (output,) = model([pixels.to(device).float() / 255])
    model.train(mode)
    output = {name: tensor[output["labels"] > 0] for name, tensor in output.items()}  # RetinaNet never learns class 0
    masks = None
    if "masks" in output:
        masks = tuple(encode_binary_mask(mask) for mask in (output["masks"][:, 0] > MASK_THRESHOLD).cpu().numpy())
    arrays = {name: output[name].float().cpu().numpy().astype(float) for name in ("boxes", "scores")}
    return Detections(**arrays, labels=output["labels"].cpu().numpy() - 1, masks=masks)


def load_predictor(config: DetectConfig, backbone: Backbone, num_classes: int, run: Run) -> Predictor:
    """Load the detector of a finished run.

    Args:
        config: of the run.
        backbone: its initial backbone.
        num_classes: without background.
        run: this process.
    """
    model, _ = build_detector(config, copy.deepcopy(backbone), num_classes)
    state = load_tensors(file := config.out / STATE, advice="copy the run again")
    try:
        model.load_state_dict(state["model"])
    except (LookupError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{file} does not hold the run's detector ({reason}): copy the run again") from error
    model.to(run.device)
    bgr = backbone.spec.input.channel_order == "bgr"

    def predict_file(file: Path) -> Detections:
        pixels = torch.from_numpy(np.array(load_image(file))).permute(2, 0, 1)
        return predict_image(model, config, pixels.flip(0) if bgr else pixels, run.device)

    return predict_file
