"""The training loop of torchvision's detectors."""

import copy
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.backbone import Backbone
from stillroom.backbone.seeds import seed_everything
from stillroom.det_transfer.backends.protocol import TrainedDetector
from stillroom.det_transfer.backends.torchvision.images import BoxedImages, Sample, build_train_loader
from stillroom.det_transfer.backends.torchvision.nets import (
    autocast,
    boxes_in_float32,
    build_detector,
    set_image_sizes,
)
from stillroom.det_transfer.backends.torchvision.predict import predict_all
from stillroom.det_transfer.config import DetectConfig
from stillroom.det_transfer.data import DetectionData, refuse_broken
from stillroom.det_transfer.freeze import frozen_part, sync_norms
from stillroom.det_transfer.schedule import lr_multiplier
from stillroom.runs import Run, RunDirectory
from stillroom.runs.parallel import broadcast_buffers, wrap_ddp
from stillroom.runs.progress import Progress
from stillroom.runs.run import DivergedError


def train(config: DetectConfig, run: Run, data: DetectionData, backbone: Backbone, resume: bool) -> TrainedDetector:
    """Train a detector from the initial weights, or from the run's last state.

    Args:
        config: of a single run.
        run: this process.
        data: its images.
        backbone: the initial weights; they are copied.
        resume: whether the run may have left a state.

    Raises:
        ValueError: a backbone that the neck cannot take, a batch larger than the data, images that cannot be read, a
            loss that is NaN or infinite.
    """
    # 1. Open the run directory, and its last state when the run is resumed.
    directory, state = RunDirectory.reopen(config.out, run, batch_size=config.batch_size)
    assert resume or state is None, "a new run has no state"

    # 2. Build the detector around a copy of the backbone; the seed fixes its new weights.
    seed_everything(config.seed)
    model, bridge = build_detector(config, copy.deepcopy(backbone), len(data.classes))
    bridge.load(model, backbone)
    # bfloat16 would round the corners of boxes; batch norms that train take their statistics over all processes.
    if config.amp == "bf16":
        boxes_in_float32(model)
    if run.world_size > 1 and run.device.type == "cuda" and frozen_part(config) == "nothing":
        sync_norms(model)
    model.to(run.device)

    # 3. Build the optimiser, then restore model, optimiser and counters.
    optimizer = build_optimizer(model, config)
    step, seconds = 0, 0.0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]

    # 4. Freeze what stays frozen, then wrap the model: DDP must not wait for gradients that never come.
    model.train()
    ddp_model = wrap_ddp(model, run, find_unused_parameters=True)

    # 5. Start the data and the progress bar at the first step that is left to do.
    spec = backbone.spec.input
    images = BoxedImages(data.train, spec, seed=config.seed, masks=config.detector == "mask-rcnn")
    loader = build_train_loader(images, config, run, step)
    set_image_sizes(model, config.train_sizes)
    progress = Progress(config.steps * config.batch_size, run, "train", done=step * config.batch_size)

    # 6. What the loop counts: each loss since the last log line.
    sums: dict[str, Tensor] = {}
    last_logged = step
    for batch in progress.over(islice(loader, config.steps - step)):
        # Move the batch to the device; a broken image ends the run here, by its name.
        pixels, targets = to_device(refuse_broken(batch), run.device)

        # Set this step's learning rate, and seed what the forward pass draws: image sizes, anchors, boxes.
        for group in optimizer.param_groups:
            group["lr"] = config.lr * lr_multiplier(step, steps=config.steps, warmup=config.warmup, drops=config.drops)
        seed_everything(config.seed, step, run.rank)

        # Forward: the detector returns its losses, which are added without weights.
        with autocast(config, run.device):
            losses: dict[str, Tensor] = ddp_model(pixels, targets)
        loss = torch.stack(list(losses.values())).sum()

        # Backward, and the optimiser's step.
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        step += 1

        # Add up the losses on the device, for reading one back would stall it.
        for name, value in {"loss": loss, **losses}.items():
            sums[name] = sums.get(name, 0) + value.detach()

        # Log the means over the processes and the steps since the last line; stop a run that has diverged.
        if step % config.log_every == 0 or step == config.steps:
            num_steps = step - last_logged
            means = {name: float(run.sum(total)) / num_steps / run.world_size for name, total in sums.items()}
            if not np.isfinite(means["loss"]):
                where = f"at one of the steps {last_logged + 1} to {step}"
                raise DivergedError(f"the loss is {means['loss']} {where}: lower --lr; {directory.kept}")
            lap = progress.lap()
            directory.log(step, {**means, **lap, "lr": optimizer.param_groups[0]["lr"]})
            progress.show(loss=means["loss"], wait=lap["data_wait_share"])
            sums, last_logged = {}, step

        # Save a state to resume from; the last one is also what `predict` loads.
        if directory.is_due(step, config.save_every, config.save_minutes) or step == config.steps:
            state_dicts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            directory.save_state({"step": step, "seconds": seconds + progress.seconds, **state_dicts})

    # 7. Hand over the detector; every process predicts with the statistics that were saved.
    directory.close()
    broadcast_buffers(model, run)
    return TrainedDetector(
        model=model,
        bridge=bridge,
        seconds=seconds + progress.seconds,
        predict=lambda test_images: predict_all(model, config, spec, test_images, run),
    )


def build_optimizer(model: nn.Module, config: DetectConfig) -> torch.optim.SGD:
    """Build SGD with momentum 0.9, without weight decay on norms."""
    norms = [
        parameter
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm)
        for parameter in module.parameters(recurse=False)
    ]
    norm_ids = {id(parameter) for parameter in norms}
    others = [parameter for parameter in model.parameters() if id(parameter) not in norm_ids]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, config.lr, momentum=0.9, weight_decay=config.weight_decay)


def to_device(batch: list[Sample], device: torch.device) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Move a batch to a device: pixels scaled to 0 to 1, and targets, as torchvision's detectors take them."""
    pixels = [image.to(device, non_blocking=True).float() / 255 for _, image, _ in batch]
    return pixels, [{name: tensor.to(device) for name, tensor in target.items()} for _, _, target in batch]
