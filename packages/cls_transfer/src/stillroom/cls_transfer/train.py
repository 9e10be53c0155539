"""Supervised training of a backbone with its classifier, from images to checkpoint and results."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms import v2

from stillroom.backbone import (
    Data,
    EvaluationView,
    Head,
    ImageDataset,
    ImageFiles,
    Normalize,
    Results,
    Run,
    RunDirectory,
    load_backbone,
    read_labelled,
    replace_input,
    save_checkpoint,
    write_results,
)
from stillroom.backbone.configs import config_from_json, config_to_dict, config_to_json
from stillroom.backbone.images import EvaluationBatches, TrainingBatches, build_loader
from stillroom.backbone.progress import Progress
from stillroom.backbone.provenance import made_by
from stillroom.backbone.registry import RANDOM
from stillroom.backbone.results import CheckpointRecord, DatasetRecord, percent, read_results
from stillroom.backbone.run import DeviceName, read_config, seed_everything
from stillroom.backbone.spec import inherit_licence
from stillroom.cls_transfer.config import UNIONS, ClassifyConfig
from stillroom.cls_transfer.model import Classifier

PACKAGE = "stillroom-cls-transfer"
PROTOCOL = "classification/v1"
CHECKPOINT = "checkpoint"


def finetune(config: ClassifyConfig) -> Path:
    """Train a backbone and a linear classifier on labelled images, test once, and return the run directory.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    run = Run.start(config.device)
    files, test_files = read_data(config)
    check(config, files, run)
    model = build_model(config, files).to(run.device)
    directory = RunDirectory.create(config.out, config_to_json(config, UNIONS), run)
    return train(config, run, directory, files, test_files, model, state=None)


def resume(
    path: Path, *, device: DeviceName | None = None, workers: int | None = None, log_every: int | None = None
) -> Path:
    """Go on with a run from its last state; on the CPU the weights end equal to the bit to a run never stopped.

    Args:
        path: the run directory.
        device, workers, log_every: replace what the run began with; None keeps it.

    Raises:
        ValueError: no run directory, or images that changed since.
    """
    config = config_from_json(read_config(path), ClassifyConfig, UNIONS)
    changes: dict[str, Any] = {"device": device, "workers": workers, "log_every": log_every, "out": path}
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    if (path / "results.json").exists():
        return path
    run = Run.start(config.device)
    files, test_files = read_data(config)
    model = build_model(config, files).to(run.device)
    directory, state = RunDirectory.reopen(path, run)
    if state is not None and state["data_fingerprint"] != files.fingerprint:
        raise ValueError(f"the images in {config.train} changed since {path} began: it cannot be resumed")
    return train(config, run, directory, files, test_files, model, state)


def train(
    config: ClassifyConfig,
    run: Run,
    directory: RunDirectory,
    files: ImageFiles,
    test_files: ImageFiles,
    model: Classifier,
    state: dict[str, Any] | None,
) -> Path:
    """The loop, from `state` (None: the beginning) to the last step, the test, and what is written at the end."""
    optimizer = torch.optim.SGD(
        model.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    step = 0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]

    spec = model.backbone.spec.input
    view = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(spec.size, scale=(config.min_scale, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    )
    dataset = ImageDataset(files, view, seed=config.seed, on_broken=config.on_broken)
    batches = TrainingBatches(len(files), config.batch_size, config.epochs, config.seed, run, start=step)
    loader = build_loader(dataset, batches, config.workers)
    normalize = Normalize(spec).to(run.device)
    labels = torch.tensor(files.labels)
    learn: Any = model
    if run.world_size > 1:
        learn = DistributedDataParallel(model, device_ids=[run.device] if run.device.type == "cuda" else None)
    autocast = torch.autocast(run.device.type, torch.bfloat16, enabled=config.amp == "bf16")

    model.train()
    progress = Progress(len(files) * config.epochs, run, "train", done=step * config.batch_size)
    loss_sum, loss_steps = torch.zeros((), device=run.device), 0
    for batch in progress.over(loader):
        progress.skip(batch.broken)
        if not len(batch):
            raise ValueError(f"no image of a whole batch could be read, for instance: {batch.broken[0]}")
        epoch = (step + 0.5) / batches.steps_per_epoch
        for group in optimizer.param_groups:
            group["lr"] = config.lr * config.schedule.factor(epoch, config.epochs)
        seed_everything(config.seed, step, run.rank)  # for nets that draw (dropout, drop path): the same when resumed
        with autocast:
            logits = learn(normalize(batch.images.to(run.device, non_blocking=True)))
        loss = cross_entropy(logits.float(), labels[batch.indices].to(run.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1

        loss_sum += loss.detach()
        loss_steps += 1
        if step % config.log_every == 0 or step == batches.steps_per_epoch * config.epochs:
            loss_mean = float(run.sum(loss_sum)) / loss_steps / run.world_size
            if not torch.isfinite(torch.tensor(loss_mean)):
                raise ValueError(f"the loss is {loss_mean} at step {step}: lower --lr; the last good state is kept")
            lap = {**progress.lap(), "lr": optimizer.param_groups[0]["lr"], "epoch": step / batches.steps_per_epoch}
            directory.log(step, {"loss": loss_mean, **lap, "broken": len(progress.broken)})
            progress.show(loss=loss_mean, wait=lap["data_wait_share"])
            loss_sum.zero_()
            loss_steps = 0
        if step % config.save_every == 0:
            directory.save_state(
                {
                    "step": step,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "data_fingerprint": files.fingerprint,
                }
            )

    progress.broken = {sentence for one in run.gather(progress.broken) for sentence in one}
    if run.world_size > 1:  # batch norm counts per process: test and save what the first one counted
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
    metrics, test_broken = test(config, run, model, test_files)
    finish(config, run, files, test_files, model, metrics, progress, test_broken)
    directory.close()
    run.wait()  # every process finds results.json when this returns
    run.close()
    return config.out


@torch.no_grad()
def test(config: ClassifyConfig, run: Run, model: Classifier, files: ImageFiles) -> tuple[dict[str, float], list[str]]:
    """Top-1 and top-5 accuracy in the evaluation view, float32, and the images that could not be read."""
    model.eval()
    spec = model.backbone.spec.input
    dataset = ImageDataset(files, EvaluationView(spec), on_broken=config.on_broken)
    loader = build_loader(dataset, EvaluationBatches(len(files), config.batch_size, run), config.workers)
    normalize = Normalize(spec).to(run.device)
    labels = torch.tensor(files.labels)
    hits = torch.zeros(3, dtype=torch.long)  # top-1, top-5, images
    progress = Progress(len(files), run, "test")
    for batch in progress.over(loader):
        progress.skip(batch.broken)
        if len(batch):
            logits = model(normalize(batch.images.to(run.device))).cpu()
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[batch.indices, None]
            hits += torch.tensor([int(ranked[:, 0].sum()), int(ranked.sum()), len(batch)])
    top1, top5, images = run.sum(hits.to(run.device)).tolist()
    if images == 0:
        raise ValueError(f"no image of {files.root} could be read")
    metrics = {"top1": top1 / images}
    if len(files.classes) > 5:
        metrics["top5"] = top5 / images
    return metrics, sorted({sentence for one in run.gather(progress.broken) for sentence in one})


def read_data(config: ClassifyConfig) -> tuple[ImageFiles, ImageFiles]:
    """Training and test images; their classes must agree, and be two or more."""
    files = read_labelled(config.train)
    if len(files.classes) < 2:
        raise ValueError(f"{config.train} holds one class, {files.classes[0]}: there is nothing to tell apart")
    return files, read_labelled(config.test, files.classes)


def check(config: ClassifyConfig, files: ImageFiles, run: Run) -> None:
    """Refuse settings that cannot work before there is a run directory."""
    for name in ("epochs", "batch_size", "log_every", "save_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)}: it must be at least 1")
    if not 0 < config.min_scale <= 1:
        raise ValueError(f"--min-scale is {config.min_scale}: it must lie in (0, 1]")
    TrainingBatches(len(files), config.batch_size, config.epochs, config.seed, run)  # does the batch fit the data?


def build_model(config: ClassifyConfig, files: ImageFiles) -> Classifier:
    """The backbone with its first weights and a new classifier; the seed decides what is random."""
    seed_everything(config.seed)
    backbone = replace_input(load_backbone(config.checkpoint), size=config.size, crop_fraction=config.crop_fraction)
    return Classifier(backbone, len(files.classes))


def finish(
    config: ClassifyConfig,
    run: Run,
    files: ImageFiles,
    test_files: ImageFiles,
    model: Classifier,
    metrics: dict[str, float],
    progress: Progress,
    test_broken: list[str],
) -> None:
    """Write the checkpoint, its classifier as a head, and results.json."""
    if not run.is_main:
        return
    backbone = model.backbone
    backbone.spec = replace(backbone.spec, licence=inherit_licence(backbone.spec.licence, config.data_licence))
    settings = config_to_dict(config, UNIONS)
    method = "supervised" if config.checkpoint.startswith(RANDOM) else "finetune"
    width, classes = backbone.spec.dim, files.classes
    head = Head(kind="linear", in_dim=width, out_dim=len(classes), classes=classes)
    manifest = save_checkpoint(
        config.out / CHECKPOINT,
        backbone,
        method=method,
        package=PACKAGE,
        config=settings,
        data=Data(count=len(files), fingerprint=files.fingerprint),
        heads={"classifier": (head, model.linear.state_dict())},
    )
    spec = backbone.spec.input
    write_results(
        config.out,
        Results(
            task="classification",
            protocol=f"{PROTOCOL} epochs={config.epochs} last size={spec.size} crop={spec.crop_fraction:g}",
            datasets={
                "train": DatasetRecord.of(files, broken=len(progress.broken)),
                "test": DatasetRecord.of(test_files, broken=len(test_broken)),
            },
            checkpoint=CheckpointRecord(
                path=str(config.out / CHECKPOINT), sha256=manifest.weights.sha256, method=method
            ),
            metrics=metrics,
            seed=config.seed,
            seconds=progress.seconds,
            made_by=made_by(PACKAGE, settings),
            extra={"broken": [*sorted(progress.broken), *test_broken]},
        ),
    )


def summary(path: Path) -> str:
    """The last line a run prints: its directory and the one number that matters."""
    return f"{path}: {percent(read_results(path).metrics, 'top1')} % top-1"
