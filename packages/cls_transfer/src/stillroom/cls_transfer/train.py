"""Supervised training of a backbone with its classifier, from images to checkpoint and results."""

from dataclasses import dataclass
from pathlib import Path

import torch

from stillroom.backbone import Normalize
from stillroom.backbone.heads import describe_head
from stillroom.backbone.seeds import seed_everything
from stillroom.cls_transfer.augment import TrainingView, build_mixing
from stillroom.cls_transfer.config import ClassifyConfig
from stillroom.cls_transfer.data import Sets, compare, read_sets
from stillroom.cls_transfer.initial import HEAD, build_model, load_model
from stillroom.cls_transfer.metrics import classify
from stillroom.cls_transfer.model import Classifier, head_tensors
from stillroom.cls_transfer.record import finish
from stillroom.cls_transfer.state import Best, TrainState
from stillroom.finetune import lifecycle
from stillroom.images import ImageDataset
from stillroom.images.loaders import TrainingBatches, build_loader
from stillroom.runs import Run, RunDirectory
from stillroom.runs.inputs import names_input
from stillroom.runs.parallel import broadcast_buffers
from stillroom.runs.progress import Progress
from stillroom.runs.run import DivergedError


@dataclass(frozen=True, kw_only=True)
class Prepared(lifecycle.Prepared):
    """What a classification run begins with: its images, and its classifier with the initial weights."""

    sets: Sets
    model: Classifier


def prepare(config: ClassifyConfig, run: Run, saved: Path | None) -> Prepared:
    """Read the images and the initial weights of a single run; nothing is written.

    Args:
        config: of a single run: one checkpoint, one task at most, one learning rate, one seed.
        run: this process.
        saved: the initial weights that a resumed run kept; runs of versions before 0.4 kept none, and take those of
            `--checkpoint`, as a new run does.

    Raises:
        ValueError: bad input, each in one sentence.
    """
    sets = read_sets(config, run)
    sets = compare(sets) if run.is_main else sets
    TrainingBatches(len(sets.train), config.batch_size, config.epochs, config.seed, run)  # does the batch fit the data?
    if saved is not None and saved.exists():
        model = load_model(saved, config)
    else:
        model = build_model(config, len(sets.train.classes))
    heads = {HEAD: (describe_head(model.head, sets.train.classes), head_tensors(model))}
    return Prepared(
        backbone=model.backbone,
        records=sets.records,
        inputs={"classes": names_input(sets.train.classes)},
        heads=heads,
        sets=sets,
        model=model.to(run.device),
    )


def train(config: ClassifyConfig, run: Run, prepared: Prepared, resume: bool) -> None:
    """Train from the beginning or from the last state, select weights, test them once, and write what a run leaves.

    Args:
        config: of a single run.
        run: this process.
        prepared: its images and its classifier.
        resume: whether the run may have saved a state.

    Raises:
        ValueError: images that cannot be read, a loss that is NaN or infinite, a state that does not belong to the run.
    """
    # 1. The run directory, and the state to resume from.
    sets, model = prepared.sets, prepared.model
    directory, saved = RunDirectory.reopen(config.out, run, batch_size=config.batch_size)
    assert resume or saved is None, "a new run has no state"
    state = TrainState(config, model, run)
    if saved is not None:
        if "fingerprints" in saved:  # of a run of a version before 0.4
            lifecycle.refuse_changed(config.out, prepared.records, began=saved["fingerprints"])
        state.load_state_dict(saved)
    # 2. The data: which images each step gets depends on the seed and the step alone.
    spec = model.backbone.spec.input
    view = TrainingView(config, spec)
    dataset = ImageDataset(sets.train, view, seed=config.seed, on_broken=config.on_broken, as_stored=config.as_stored)
    passes = (len(sets.train), config.batch_size, config.epochs, config.seed)
    batches = TrainingBatches(*passes, run, start=state.step, order=config.order)
    loader = build_loader(dataset, batches, config.workers)
    normalize = Normalize(spec).to(run.device)
    mix = build_mixing(config, len(sets.train.classes))
    labels = torch.tensor(sets.train.labels)
    per_epoch, last = batches.steps_per_epoch, batches.steps_per_epoch * config.epochs
    # 3. What the loop counts.
    progress = Progress(len(sets.train) * config.epochs, run, "train", done=state.step * config.batch_size)
    progress.broken |= state.broken
    seconds_before = state.seconds
    loss_sum, loss_steps = torch.zeros((), device=run.device), 0

    model.train()
    for batch in progress.over(loader):
        # Broken images are named and left out; a batch without any other stops the run.
        progress.skip(batch.broken)
        if not len(batch):
            raise ValueError(f"no image of a whole batch could be read, for instance: {batch.broken[0]}")
        # One step. Mixup and dropout draw from a generator seeded by (seed, step, process): the same when resumed.
        seed_everything(config.seed, state.step, run.rank)
        images = normalize(batch.images.to(run.device, non_blocking=True))
        images, targets = mix(images, labels[batch.indices].to(run.device))
        loss_sum += state.advance(images, targets, (state.step + 0.5) / per_epoch)
        loss_steps += 1
        step = state.step
        # A log line with the mean loss since the one before; reading it back also finds a run that diverged.
        if step % config.log_every == 0 or step == last:
            loss = float(run.sum(loss_sum)) / loss_steps / run.world_size
            if not torch.isfinite(torch.tensor(loss)):
                steps = f"step {step}" if loss_steps == 1 else f"one of the steps {step - loss_steps + 1} to {step}"
                raise DivergedError(f"the loss is {loss} at {steps}: lower --lr; {directory.kept}")
            lap = {**progress.lap(), "lr": state.optimizer.param_groups[0]["lr"], "epoch": step / per_epoch}
            directory.log(step, {"loss": loss, **lap, "broken": len(progress.broken)})
            progress.show(loss=loss, wait=lap["data_wait_share"])
            loss_sum.zero_()
            loss_steps = 0
        # After an epoch, validate on the held-out images, and keep the weights if they are the best so far.
        if sets.val is not None and step % per_epoch == 0:
            epoch = step // per_epoch
            counted = epoch - 1 if config.choose == "best-on-test" else epoch  # KDEP's code counts from 0
            if counted % config.val_every == 0 or step == last:
                validate(config, run, directory, sets, state, progress, epoch)
        # A state to resume from.
        if directory.is_due(step, config.save_every, config.save_minutes) or step == last:
            state.seconds = seconds_before + progress.seconds
            state.broken = {reason for process in run.gather(progress.broken) for reason in process}
            directory.save_state(state.state_dict())

    directory.close()

    # 4. The test, once, with the selected weights; then everything that the run leaves.
    selected = select_weights(run, state)
    predictions = classify(
        selected,
        sets.test,
        run,
        batch_size=config.batch_size,
        workers=config.workers,
        on_broken=config.on_broken,
        as_stored=config.as_stored,
    )
    state.seconds = seconds_before + progress.seconds
    finish(config, run, sets, selected, state, predictions)
    run.wait()  # every process finds results.json when this returns


def validate(
    config: ClassifyConfig,
    run: Run,
    directory: RunDirectory,
    sets: Sets,
    state: TrainState,
    progress: Progress,
    epoch: int,
) -> None:
    """Classify the held-out images after an epoch, log top-1, and keep the weights if they are the best so far."""
    assert sets.val is not None, "there are held-out images"
    model = state.eval_model
    broadcast_buffers(model, run)
    predictions = classify(
        model,
        sets.val,
        run,
        batch_size=config.batch_size,
        workers=config.workers,
        on_broken=config.on_broken,
        as_stored=config.as_stored,
        label="held out",
    )
    metrics, state.val_broken = predictions.metrics(), predictions.broken
    directory.log(state.step, {"val_top1": metrics["top1"], "epoch": float(epoch)})
    progress.note(f"epoch {epoch}, held out", metrics)
    if config.choose == "last":
        state.best = Best(epoch=epoch, top1=metrics["top1"])
    elif metrics["top1"] > state.best.top1:
        state.best = Best(epoch=epoch, top1=metrics["top1"])
        state.best_weights = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}


def select_weights(run: Run, state: TrainState) -> Classifier:
    """The weights to test and keep: those of the best validation, or the last; the same in every process."""
    model = state.eval_model
    if state.best_weights is not None:
        model.load_state_dict(state.best_weights)
    broadcast_buffers(model, run)
    return model
