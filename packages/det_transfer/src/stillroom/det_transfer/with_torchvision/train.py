"""The loop of torchvision's detectors, seen whole."""

import copy
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stillroom.backbone import Backbone, InputSpec, Run, RunDirectory
from stillroom.backbone.images import load_image
from stillroom.backbone.progress import Progress
from stillroom.backbone.run import DivergedError, seed_everything
from stillroom.backbone.run_files import STATE
from stillroom.det_transfer.annotations import Images
from stillroom.det_transfer.backend import Predictor, Trained
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import DetectionData, read_data, readable
from stillroom.det_transfer.detections import Detections, encode_plane
from stillroom.det_transfer.levels import held, share_statistics, sync_norms
from stillroom.det_transfer.schedule import factor
from stillroom.det_transfer.with_torchvision.images import (
    BoxedImages,
    Sample,
    build_evaluation,
    build_training,
)
from stillroom.det_transfer.with_torchvision.nets import autocast, boxes_in_float, build_detector, sized

MASK_THRESHOLD = 0.5


def read(config: DetectConfig) -> DetectionData:
    """The images of a run; see `read_data`."""
    return read_data(config)


def look_ahead(config: DetectConfig, run: Run, data: DetectionData, backbone: Backbone) -> None:
    """Build the detector, without memory for its weights; see `build_detector`."""
    with torch.device("meta"):
        build_detector(config, copy.deepcopy(backbone), len(data.classes))


def train(config: DetectConfig, run: Run, data: DetectionData, backbone: Backbone, go_on: bool) -> Trained:
    """Train a detector from the beginning, or from the run's last state.

    Args:
        config: of a single run.
        run: this process.
        data: its images.
        backbone: its first weights; they are copied.
        go_on: an earlier life of the run may have left a state.

    Raises:
        ValueError: a backbone that the neck does not fit, a batch larger than the data, images that cannot be read, a
            loss that is not finite.
    """
    directory, state = RunDirectory.reopen(config.out, run)
    assert go_on or state is None, "a new run has no state"
    seed_everything(config.seed)
    model, bridge = build_detector(config, copy.deepcopy(backbone), len(data.classes))
    bridge.load(model, backbone)
    if config.amp == "bf16":
        boxes_in_float(model)
    if run.world_size > 1 and run.device.type == "cuda" and held(config) == "nothing":
        sync_norms(model)
    model.to(run.device)
    optimizer = build_optimizer(model, config)
    step, seconds = 0, 0.0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    model.train()  # before it is wrapped: what is held wants no gradient
    learn: nn.Module = model
    if run.world_size > 1:
        devices = [run.device] if run.device.type == "cuda" else None
        learn = DistributedDataParallel(model, device_ids=devices, find_unused_parameters=True)
    spec = backbone.spec.input
    images = BoxedImages(data.train, spec, seed=config.seed, masks=config.detector == "mask-rcnn")
    loader = build_training(images, config.batch_size, config.steps, config.seed, run, step, config.workers)

    sized(model, config.train_sizes)
    progress = Progress(config.steps * config.batch_size, run, "train", done=step * config.batch_size)
    sums: dict[str, Tensor] = {}
    since = step
    for batch in progress.over(islice(loader, config.steps - step)):
        pixels, targets = to_device(readable(batch), run.device)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * factor(step, steps=config.steps, warmup=config.warmup, drops=config.drops)
        seed_everything(config.seed, step, run.rank)  # for what draws: sizes, anchors, boxes
        with autocast(config, run.device):
            losses: dict[str, Tensor] = learn(pixels, targets)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        step += 1
        for name, value in {"loss": loss, **losses}.items():
            sums[name] = sums.get(name, 0) + value.detach()
        if step % config.log_every == 0 or step == config.steps:
            means = {name: float(run.sum(total)) / (step - since) / run.world_size for name, total in sums.items()}
            if not np.isfinite(means["loss"]):
                where = f"at one of the steps {since + 1} to {step}"
                raise DivergedError(f"the loss is {means['loss']} {where}: lower --lr; {directory.kept}")
            lap = progress.lap()
            directory.log(step, {**means, **lap, "lr": optimizer.param_groups[0]["lr"]})
            progress.show(loss=means["loss"], wait=lap["data_wait_share"])
            sums, since = {}, step
        if step % config.save_every == 0 or step == config.steps:
            spent = seconds + progress.seconds
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            directory.save_state({"step": step, "seconds": spent, **parts})
    directory.close()
    share_statistics(model, run)
    return Trained(
        model=model, bridge=bridge, seconds=seconds + progress.seconds,
        find=lambda wanted: predict_all(model, config, spec, wanted, run),
    )  # fmt: skip


def build_optimizer(model: nn.Module, config: DetectConfig) -> torch.optim.SGD:
    """SGD with momentum, without weight decay on norms."""
    norms = [
        parameter
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm)
        for parameter in module.parameters(recurse=False)
    ]
    known = {id(parameter) for parameter in norms}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, config.lr, momentum=0.9, weight_decay=config.weight_decay)


def to_device(batch: list[Sample], device: torch.device) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Pixels from 0 to 1, and targets, as torchvision's detectors take them."""
    pixels = [image.to(device, non_blocking=True).float() / 255 for _, image, _ in batch]
    return pixels, [{name: tensor.to(device) for name, tensor in target.items()} for _, _, target in batch]


def predict_all(model: nn.Module, config: DetectConfig, spec: InputSpec, images: Images, run: Run) -> list[Detections]:
    """What a detector finds in every image; all processes get all of it."""
    dataset = BoxedImages(images, spec)
    found: dict[int, Detections] = {}
    progress = Progress(len(images), run, "test")
    for batch in progress.over(build_evaluation(dataset, run, config.workers)):
        ((index, pixels, _),) = readable(batch)
        found[index] = find(model, config, pixels, run.device)
    together = {index: one for part in run.gather(found) for index, one in part.items()}
    return [together[index] for index in range(len(images))]


@torch.no_grad()
def find(model: nn.Module, config: DetectConfig, pixels: Tensor, device: torch.device) -> Detections:
    """What a detector finds in an image.

    Args:
        model: of torchvision's.
        config: of its run.
        pixels: (3, h, w) uint8, in the backbone's channel order.
        device: of the model.
    """
    mode = model.training
    model.eval()
    sized(model, (config.test_size,))
    (out,) = model([pixels.to(device).float() / 255])  # in float32, whatever it was trained in, as Detectron2 does
    model.train(mode)
    out = {name: tensor[out["labels"] > 0] for name, tensor in out.items()}  # RetinaNet's class 0 is never learned
    masks = None
    if "masks" in out:
        masks = tuple(encode_plane(plane) for plane in (out["masks"][:, 0] > MASK_THRESHOLD).cpu().numpy())
    numbers = {name: out[name].float().cpu().numpy().astype(float) for name in ("boxes", "scores")}
    return Detections(**numbers, labels=out["labels"].cpu().numpy() - 1, masks=masks)


def load_predictor(config: DetectConfig, backbone: Backbone, num_classes: int, run: Run) -> Predictor:
    """A detector that was trained, image file -> what it finds.

    Args:
        config: of its run.
        backbone: that it began with.
        num_classes: without background.
        run: this process.
    """
    model, _ = build_detector(config, copy.deepcopy(backbone), num_classes)
    model.load_state_dict(torch.load(config.out / STATE, map_location="cpu", weights_only=True)["model"])
    model.to(run.device)
    bgr = backbone.spec.input.channel_order == "bgr"

    def find_in(file: Path) -> Detections:
        pixels = torch.from_numpy(np.array(load_image(file))).permute(2, 0, 1)
        return find(model, config, pixels.flip(0) if bgr else pixels, run.device)

    return find_in
