"""Supervised training of a backbone with its classifier, from images to checkpoint and results."""

from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from stillroom.backbone import ImageDataset, Normalize, Run, RunDirectory
from stillroom.backbone.configs import config_to_json, reread_config
from stillroom.backbone.flags import DeviceName
from stillroom.backbone.loading import TrainingBatches, build_loader
from stillroom.backbone.progress import Progress
from stillroom.backbone.run import DivergedError, seed_everything
from stillroom.cls_transfer.augment import build_mixing, build_view
from stillroom.cls_transfer.config import UNIONS, ClassifyConfig, check
from stillroom.cls_transfer.data import Sets, read_sets
from stillroom.cls_transfer.initial import build_model
from stillroom.cls_transfer.metrics import answer
from stillroom.cls_transfer.model import Classifier
from stillroom.cls_transfer.record import finish
from stillroom.cls_transfer.state import Best, TrainState


def train_one(config: ClassifyConfig, run: Run) -> None:
    """Train a backbone and a classifier on labelled images, and test once.

    Args:
        config: of a single run: one checkpoint, one task at most, one learning rate, one seed.
        run: this process.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    sets, model = prepare(config, run)
    directory = RunDirectory.create(config.out, config_to_json(config, UNIONS), run)
    train(config, run, directory, sets, model, state=None)


def prepare(config: ClassifyConfig, run: Run) -> tuple[Sets, Classifier]:
    """The images and the model of a single run; nothing is written.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    check(config)
    sets = read_sets(config, run)
    TrainingBatches(len(sets.train), config.batch_size, config.epochs, config.seed, run)  # does the batch fit the data?
    return sets, build_model(config, len(sets.train.classes)).to(run.device)


def resume_one(
    path: Path,
    *,
    run: Run | None = None,
    device: DeviceName | None = None,
    workers: int | None = None,
    log_every: int | None = None,
) -> None:
    """Go on with a run from its last state; on the CPU the weights end equal to the bit to a run never stopped.

    Args:
        path: the run directory.
        run: this process; None: it is yet to be started, and closed.
        device, workers, log_every: replace what the run began with; None keeps it.

    Raises:
        ValueError: no run directory, or images or first weights that changed since.
    """
    config = reread_config(path, ClassifyConfig, UNIONS, device=device, workers=workers, log_every=log_every)
    here = Run.start(config.device) if run is None else run
    sets, model = prepare(config, here)
    directory, state = RunDirectory.reopen(path, here)
    if state is not None and (changed := sets.changed_since(state["fingerprints"])):
        raise ValueError(f"the images in {changed} changed since {path} began: it cannot be resumed")
    train(config, here, directory, sets, model, state)
    if run is None:
        here.close()


def train(
    config: ClassifyConfig,
    run: Run,
    directory: RunDirectory,
    sets: Sets,
    model: Classifier,
    state: dict[str, Any] | None,
) -> None:
    """The loop, from `state` (None: the beginning) to the last step, the test, and what is written at the end."""
    learner = TrainState(config, model, run)
    if state is not None:
        learner.load_state_dict(state)
    spec = model.backbone.spec.input
    dataset = ImageDataset(sets.train, build_view(config, spec), seed=config.seed, on_broken=config.on_broken)
    batches = TrainingBatches(len(sets.train), config.batch_size, config.epochs, config.seed, run, start=learner.step)
    loader = build_loader(dataset, batches, config.workers)
    normalize = Normalize(spec).to(run.device)
    mix = build_mixing(config, len(sets.train.classes))
    labels = torch.tensor(sets.train.labels)
    per_epoch, last = batches.steps_per_epoch, batches.steps_per_epoch * config.epochs

    model.train()
    progress = Progress(len(sets.train) * config.epochs, run, "train", done=learner.step * config.batch_size)
    progress.broken |= learner.broken
    earlier = learner.seconds
    loss_sum, loss_steps = torch.zeros((), device=run.device), 0
    for batch in progress.over(loader):
        progress.skip(batch.broken)
        if not len(batch):
            raise ValueError(f"no image of a whole batch could be read, for instance: {batch.broken[0]}")
        seed_everything(config.seed, learner.step, run.rank)  # for what draws (mixup, dropout): the same when resumed
        images = normalize(batch.images.to(run.device, non_blocking=True))
        images, targets = mix(images, labels[batch.indices].to(run.device))
        loss_sum += learner.advance(images, targets, (learner.step + 0.5) / per_epoch)
        loss_steps += 1
        step = learner.step
        if step % config.log_every == 0 or step == last:
            loss = float(run.sum(loss_sum)) / loss_steps / run.world_size
            if not torch.isfinite(torch.tensor(loss)):
                steps = f"step {step}" if loss_steps == 1 else f"one of the steps {step - loss_steps + 1} to {step}"
                raise DivergedError(f"the loss is {loss} at {steps}: lower --lr; {directory.kept}")
            lap = {**progress.lap(), "lr": learner.optimizer.param_groups[0]["lr"], "epoch": step / per_epoch}
            directory.log(step, {"loss": loss, **lap, "broken": len(progress.broken)})
            progress.show(loss=loss, wait=lap["data_wait_share"])
            loss_sum.zero_()
            loss_steps = 0
        if sets.val is not None and step % per_epoch == 0:
            epoch = step // per_epoch
            if epoch % config.val_every == 0 or step == last:
                look(config, run, directory, sets, learner, progress, epoch)
        if step % config.save_every == 0 or step == last:
            learner.seconds = earlier + progress.seconds
            learner.broken = {sentence for one in run.gather(progress.broken) for sentence in one}
            directory.save_state({**learner.state_dict(), "fingerprints": sets.fingerprints})

    chosen = choose(run, learner)
    tested = answer(
        chosen, sets.test, run, batch_size=config.batch_size, workers=config.workers, on_broken=config.on_broken
    )
    learner.seconds = earlier + progress.seconds
    finish(config, run, sets, chosen, learner, tested)
    directory.close()
    run.wait()  # every process finds results.json when this returns


def look(
    config: ClassifyConfig,
    run: Run,
    directory: RunDirectory,
    sets: Sets,
    learner: TrainState,
    progress: Progress,
    epoch: int,
) -> None:
    """Measure on the held-out part after an epoch, and keep the weights that are best so far."""
    assert sets.val is not None, "there is something to look at"
    model = learner.leaving
    share_statistics(model, run)
    options: dict[str, Any] = {"batch_size": config.batch_size, "workers": config.workers, "label": "held out"}
    found = answer(model, sets.val, run, on_broken=config.on_broken, **options)
    metrics, learner.val_broken = found.metrics(), found.broken
    directory.log(learner.step, {"val_top1": metrics["top1"], "epoch": float(epoch)})
    progress.note(f"epoch {epoch}, held out", metrics)
    if config.choose == "last":
        learner.best = Best(epoch=epoch, top1=metrics["top1"])
    elif metrics["top1"] > learner.best.top1:
        learner.best = Best(epoch=epoch, top1=metrics["top1"])
        learner.best_weights = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}


def choose(run: Run, learner: TrainState) -> Classifier:
    """The weights to test and keep."""
    model = learner.leaving
    if learner.best_weights is not None:
        model.load_state_dict(learner.best_weights)
    share_statistics(model, run)
    return model


def share_statistics(model: Classifier, run: Run) -> None:
    """Batch norm counts per process: measure and save what the first one counted."""
    if run.world_size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
