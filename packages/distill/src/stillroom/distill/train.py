"""The one trainer: frozen teachers, aligned targets, students that regress them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stillroom.backbone import Backbone, ImageDataset, ImageFiles, Run, RunDirectory
from stillroom.backbone.configs import config_to_json, reread_config
from stillroom.backbone.flags import DeviceName
from stillroom.backbone.loading import Batch, TrainingBatches, build_loader
from stillroom.backbone.progress import Progress
from stillroom.backbone.run import seed_everything
from stillroom.distill.alignment import AlignedTarget
from stillroom.distill.cache import CachedTeacher, fill_cache
from stillroom.distill.config import UNIONS, DistillConfig, check_settings
from stillroom.distill.distances import dense_distance, distance
from stillroom.distill.monitor import (
    AGREEMENT,
    CHECK_COLLAPSE_EVERY,
    KnnMonitor,
    Watch,
    check_labelled,
    collapse,
    normalised,
    nothing_learned,
    split_held_out,
)
from stillroom.distill.record import finish, write_students
from stillroom.distill.setup import Parts, build_nets, check_widths, prepare, read_files
from stillroom.distill.slots import FixedView
from stillroom.distill.state import Meter, TrainState, refuse_infinite
from stillroom.distill.student import Learner
from stillroom.distill.views import Views


def distill(
    config: DistillConfig, teacher: Backbone | Sequence[Backbone] | None = None, knn: KnnMonitor | None = None
) -> Path:
    """Distil teachers into students without labels, and return the run directory.

    Args:
        config: the run.
        teacher: nets of your own, wrapped by `Backbone.from_module`; the names in `config.teacher` are only labels.
        knn: measures k-NN accuracy on `config.monitor.knn`; `stillroom.eval_ssl.monitor_knn` is one.

    Raises:
        ValueError: bad input, each in one sentence; `CheckpointError` is one of them.

    Reference: He et al., "Knowledge Distillation as Efficient Pre-training", CVPR 2022; Navaneet et al., "SimReg",
    BMVC 2021.
    """
    run = Run.start(config.device)
    files = read_files(config)
    check(config, files, run, knn)
    teachers, students = build_nets(config, teacher, run)
    check_widths(config, files, teachers, students)
    directory = RunDirectory.create(config.out, config_to_json(config, UNIONS), run)
    parts = prepare(config, run, files, teachers, students)
    return train(config, run, directory, parts, knn, saved=None)


def resume(
    path: Path,
    teacher: Backbone | Sequence[Backbone] | None = None,
    knn: KnnMonitor | None = None,
    *,
    device: DeviceName | None = None,
    workers: int | None = None,
    log_every: int | None = None,
) -> Path:
    """Go on with a run from its last state; on the CPU the weights end equal to the bit to a run never stopped.

    Args:
        path: the run directory.
        teacher, knn: as given to `distill`, where they were.
        device, workers, log_every: replace what the run began with; None keeps it.

    Raises:
        ValueError: no run directory, images that changed since, or a state that an older version wrote.
    """
    config = reread_config(path, DistillConfig, UNIONS, device=device, workers=workers, log_every=log_every)
    run = Run.start(config.device)
    if (path / "results.json").exists():
        return path
    files = read_files(config)
    check(config, files, run, knn)
    teachers, students = build_nets(config, teacher, run)
    directory, saved = RunDirectory.reopen(path, run)
    parts = prepare(config, run, files, teachers, students)
    if saved is not None and "losses" not in saved:
        raise ValueError(f"{path} was begun by stillroom-distill 0.2.0 or older: resume it with that version")
    if saved is not None and saved["data_fingerprint"] != parts.files.fingerprint:
        raise ValueError(f"the images in {config.data} changed since {path} began: it cannot be resumed")
    return train(config, run, directory, parts, knn, saved)


def train(
    config: DistillConfig,
    run: Run,
    directory: RunDirectory,
    parts: Parts,
    knn: KnnMonitor | None,
    saved: dict[str, Any] | None,
) -> Path:
    """The loop, from a saved state (None: the beginning) to the last step, and what is written at its end."""
    state = TrainState(config, parts.learners)
    if saved is not None:
        state.load_state_dict(saved)
    feed = build_feed(config, run, parts, state)
    weights = normalised([net.weight for net in config.teacher.each()])
    teach: list[Any] = [torch.compile(t) if config.compile else t for t in parts.teachers]
    learn: list[Any] = [wrap(learner, config, run) for learner in parts.learners]
    autocast = torch.autocast(run.device.type, torch.bfloat16, enabled=config.amp == "bf16")
    watch = Watch(
        config=config,
        run=run,
        held_out=parts.held_out,
        teachers=parts.teachers,
        targets=parts.targets,
        steps_per_epoch=feed.steps_per_epoch,
        knn=knn,
    )

    if saved is None and watch.held_out is not None:
        state.untrained = watch.measure(state.leaving(), labelled=False)[1]
    progress = Progress(len(parts.files) * config.epochs, run, config.method, done=state.step * config.batch_size)
    meter, warned, seconds_before = Meter(), False, state.seconds
    for batch in progress.over(feed.loader):
        progress.skip(batch.broken)
        if not len(batch):
            raise ValueError(f"no image of a whole batch could be read, for instance: {batch.broken[0]}")
        epoch = (state.step + 0.5) / feed.steps_per_epoch
        seed_everything(config.seed, state.step, run.rank)  # for nets that draw (dropout, drop path), also when resumed
        images = [view.to(run.device, non_blocking=True) for view in batch.views]
        with autocast:
            if feed.cached:
                outputs = [(one.read(int(epoch), batch.indices).to(run.device), ()) for one in feed.cached]
            else:
                outputs = [one(images[place]) for one, place in zip(teach, feed.views.of_teachers, strict=True)]
            answers = [one(images[place]) for one, place in zip(learn, feed.views.of_students, strict=True)]
        wanted = align(parts.targets, [output for output, _ in outputs], [one.aligned for one in feed.cached])
        shown, total = losses(config, weights, wanted, [maps for _, maps in outputs], answers)
        state.advance(total, lr=config.lr * config.schedule.factor(epoch, config.epochs))
        meter.add(shown)

        step, done = state.step, state.step / feed.steps_per_epoch
        if step % CHECK_COLLAPSE_EVERY == 0 and not warned:
            warned = run.is_main and warn_of_collapse(answers, progress)
        if step % config.log_every == 0 or done == config.epochs:
            state.losses = meter.read(run)
            refuse_infinite(state.losses, step)
            lap = {**progress.lap(), "lr": state.optimizer.param_groups[0]["lr"], "epoch": done}
            directory.log(step, {**state.losses, **lap, "broken": len(progress.broken)})
            agreed = {name: value for name, value in state.measured.items() if name.startswith(AGREEMENT)}
            progress.show(loss=state.losses["loss"], **agreed, wait=lap["data_wait_share"])
            state.seconds = run.gather(seconds_before + progress.seconds)[0]  # one clock for all processes
        if done.is_integer() and watch.due(int(done)):
            score, state.measured = watch.measure(share_buffers(state.leaving(), run))
            directory.log(step, state.measured)
            progress.note(f"epoch {int(done)}", state.measured)
            if watch.judges(int(done)):
                warn_of_nothing_learned(state, progress)
            if state.best.beats(score, step):
                write_students(config, run, parts, state.leaving(), best=True)
        stop = state.reason_to_stop(config.monitor)
        if step % config.save_every == 0 or stop:
            directory.save_state({**state.state_dict(), "data_fingerprint": parts.files.fingerprint})
        if stop:
            progress.note(f"stopped at step {step}: {stop}")
            break

    progress.close()
    broken = sorted({sentence for one in run.gather(progress.broken) for sentence in one})
    finish(config, run, parts, state, broken, progress.seconds)
    directory.close()
    run.wait()  # every process finds results.json when this returns
    run.close()
    return config.out


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What the loop is fed with.

    Args:
        loader: the batches that are left.
        views: which of a batch's views each net sees.
        cached: the teachers' outputs, where they come from a cache; then no teacher runs.
        steps_per_epoch: of the whole run.
    """

    loader: Iterable[Batch]
    views: Views
    cached: list[CachedTeacher]
    steps_per_epoch: int


def build_feed(config: DistillConfig, run: Run, parts: Parts, state: TrainState) -> Feed:
    """The batches from the state's step on, none where the run has stopped early; first fills the cache."""
    files = parts.files
    cached = [fill_cache(config, run, files, t, own) for t, own in parts.taught()] if config.cache.views else []
    live = [] if cached else [teacher.backbone.spec.input for teacher in parts.teachers]
    sizes = [learner.backbone.spec.input.size for learner in parts.learners]
    views = Views(config.view, config.teacher_view, sizes, live)
    cycle = len(cached[0].stores) if cached and not isinstance(config.teacher_view, FixedView) else 0
    dataset = ImageDataset(files, views, seed=config.seed, on_broken=config.on_broken, cycle=cycle)
    batches = TrainingBatches(len(files), config.batch_size, config.epochs, config.seed, run, start=state.step)
    ended = state.reason_to_stop(config.monitor)
    loader: Iterable[Batch] = [] if ended else build_loader(dataset, batches, config.workers)
    return Feed(loader=loader, views=views, cached=cached, steps_per_epoch=batches.steps_per_epoch)


@torch.no_grad()  # the root of PTS has an infinite slope at 0
def align(
    targets: Sequence[Sequence[AlignedTarget]], outputs: Sequence[Tensor], aligned: Sequence[bool] = ()
) -> list[list[Tensor]]:
    """[teacher][student] targets of a batch.

    Args:
        targets: [teacher][student] alignments.
        outputs: of each teacher, (b, D).
        aligned: for each teacher, whether its cached outputs are targets already; none: all come from the net.
    """
    done = list(aligned) or [False] * len(outputs)
    return [
        [output if one else target(output) for target in own]
        for own, output, one in zip(targets, outputs, done, strict=True)
    ]


def losses(
    config: DistillConfig,
    weights: Sequence[float],
    wanted: Sequence[Sequence[Tensor]],
    teacher_maps: Sequence[Sequence[Tensor]],
    answers: Sequence[tuple[Tensor, list[Tensor], list[Tensor]]],
) -> tuple[dict[str, Tensor], Tensor]:
    """What is logged of a batch, and the sum to differentiate.

    Each student's part of the sum is the one it would have alone: students share nothing but the teachers.

    Args:
        config: distance, its weight, the dense term.
        weights: of the teachers, summing to 1.
        wanted: [teacher][student] targets.
        teacher_maps: of each teacher; used by the dense term only.
        answers: of each student: its feature, its prediction and its projected map for each teacher.

    Returns:
        `loss`, the distance to the target, averaged over teachers (by weight) and students; with several students
        also each one's, `loss_1` and so on; with a dense term its mean, `dense_loss`. And the sum.
    """
    each: list[Tensor] = []
    dense: list[Tensor] = []
    for student, (_, predictions, maps) in enumerate(answers):
        apart = [
            weight * distance(config.distance, prediction, target[student])
            for weight, prediction, target in zip(weights, predictions, wanted, strict=True)
        ]
        each.append(torch.stack(apart).sum())
        if maps:
            level = config.dense.teacher_level
            apart = [w * dense_distance(own, of[level]) for w, own, of in zip(weights, maps, teacher_maps, strict=True)]
            dense.append(torch.stack(apart).sum())
    shown = {"loss": torch.stack(each).mean()}
    total = config.loss_weight * torch.stack(each).sum()
    if len(each) > 1:
        shown |= {f"loss_{place}": value for place, value in enumerate(each, start=1)}
    if dense:
        shown["dense_loss"] = torch.stack(dense).mean()
        total = total + config.dense.weight * torch.stack(dense).sum()
    return shown, total


def warn_of_collapse(answers: Sequence[tuple[Tensor, list[Tensor], list[Tensor]]], progress: Progress) -> bool:
    """Say it once where a student's features hardly differ over the batch; whether it was said."""
    sentences = [sentence for pooled, _, _ in answers if (sentence := collapse(pooled.detach().float().cpu()))]
    for sentence in sentences:
        progress.note(f"warning: {sentence}")
    return bool(sentences)


def warn_of_nothing_learned(state: TrainState, progress: Progress) -> None:
    """Say it where a student agrees with its teacher hardly more than before its first step."""
    for sentence in nothing_learned(state.measured, state.untrained):
        progress.note(f"warning: {sentence}")


def check(config: DistillConfig, files: ImageFiles, run: Run, knn: KnnMonitor | None) -> None:
    """Refuse settings that cannot work before there is a run directory."""
    check_settings(config, has_knn=knn is not None)
    if config.sync_batch_norm and run.device.type != "cuda":
        raise ValueError("--sync-batch-norm works on GPUs only: leave it out on this device")
    if config.monitor.knn is not None:
        check_labelled(config.monitor.knn)
    normalised([net.weight for net in config.teacher.each()])
    trained, held_out = split_held_out(files, config.monitor.held_out, config.seed)
    if config.monitor.patience and held_out is None and config.monitor.knn is None:
        raise ValueError("--monitor.patience has nothing to go by: hold out more images, or give --monitor.knn")
    TrainingBatches(len(trained), config.batch_size, config.epochs, config.seed, run)  # does the batch fit the data?


def wrap(learner: Learner, config: DistillConfig, run: Run) -> Any:
    """A student as the loop calls it: itself, averaged over processes, compiled."""
    learner.train()
    if config.sync_batch_norm:
        from timm.layers import convert_sync_batchnorm  # noqa: PLC0415  # no other run needs timm

        convert_sync_batchnorm(learner)  # timm's: torch's would drop the activation inside a BatchNormAct2d
    wrapped: nn.Module = learner
    if run.world_size > 1:
        wrapped = DistributedDataParallel(learner, device_ids=[run.device] if run.device.type == "cuda" else None)
    return torch.compile(wrapped) if config.compile else wrapped


def share_buffers(learners: list[Learner], run: Run) -> list[Learner]:
    """Give every process the main one's batch norm statistics, which are those that are written."""
    if run.world_size > 1:
        for learner in learners:
            for buffer in learner.buffers():
                torch.distributed.broadcast(buffer, src=0)
    return learners
