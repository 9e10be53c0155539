"""The training loop: frozen teachers, aligned targets, and students that regress them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from stillroom.backbone import Backbone
from stillroom.backbone.flags import DeviceName, Workers
from stillroom.backbone.seeds import seed_everything
from stillroom.distill.compiling import EAGER_STEPS, CompileTrial, compiled
from stillroom.distill.config import UNIONS, DistillConfig
from stillroom.distill.data import nothing_held_out
from stillroom.distill.distances import DistillationLoss
from stillroom.distill.monitor import (
    AGREEMENT,
    CHECK_COLLAPSE_EVERY,
    KnnMonitor,
    StudentMonitor,
    collapse_warnings,
    learning_warnings,
)
from stillroom.distill.results import outcome_metrics, write_run_results, write_students
from stillroom.distill.setup import RunSetup, build_setup, build_supervisions, read_run_inputs
from stillroom.distill.slots import FixedView
from stillroom.distill.state import Meter, TrainState, refuse_infinite
from stillroom.distill.student import StudentModel, build_optimizer, wrap_student
from stillroom.distill.teacher import CachedTeacher, Supervision, TeacherOutput
from stillroom.distill.views import Views, colours_on
from stillroom.images import ImageDataset, Source
from stillroom.images.loaders import Batch, TrainingBatches, build_loader
from stillroom.images.prefetch import prefetch
from stillroom.runs import Run, RunDirectory
from stillroom.runs.configs import config_to_json, load_config
from stillroom.runs.guard import guarded
from stillroom.runs.hardware import autocast, batch_warnings, choose_amp, fast_float32
from stillroom.runs.inputs import record_inputs, record_moved, refuse_changed_inputs
from stillroom.runs.parallel import broadcast_buffers
from stillroom.runs.progress import Progress
from stillroom.runs.results import RESULTS
from stillroom.runs.run_files import CONFIG, failing_cleanly
from stillroom.runs.sweep import run_or_resume

CLOCK_EVERY = 10
"""Steps between two readings of the clock where several processes must agree on it."""


def distill(
    config: DistillConfig, teacher: Backbone | Sequence[Backbone] | None = None, knn: KnnMonitor | None = None
) -> Path:
    """Distil teachers into students without labels, and return the run directory.

    Args:
        config: the run.
        teacher: your own nets, wrapped by `Backbone.from_module`; the names in `config.teacher` are then only labels.
        knn: measures k-NN accuracy on `config.monitor.knn`; `stillroom.eval_ssl.monitor_knn` is one.

    Raises:
        ValueError: bad input, each in one sentence; `CheckpointError` is one of them.

    Reference: He et al., "Knowledge Distillation as Efficient Pre-training", CVPR 2022; Navaneet et al., "SimReg",
    BMVC 2021.
    """
    # 0. A run that exists is resumed, or kept if it is finished, where the config says so.
    if config.if_exists == "resume" and (config.out / CONFIG).exists():
        names = ("device", "workers", "log_every", "save_every", "save_minutes")
        changes: dict[str, Any] = {name: getattr(config, name) for name in names}
        run_or_resume(config, UNIONS, distill, partial(resume, teacher=teacher, knn=knn, **changes))
        return config.out
    # 1. Validate settings, list the images, build teachers and students: nothing is written yet.
    setup = build_setup(config, teacher, has_knn=knn is not None)
    inputs = read_run_inputs(config, setup)
    config = replace(config, amp=choose_amp(config.amp, setup.run.device))  # recorded: a run keeps its number format
    with guarded(config.out, setup.run):
        # 2. Create the run directory with config.json, and inputs.json: the hashes of what the run begins with.
        text = config_to_json(config, UNIONS)
        directory = RunDirectory.create(config.out, text, setup.run, batch_size=config.batch_size)
        with failing_cleanly(config.out, new=True), fast_float32(setup.run.device):
            if setup.run.is_main:
                record_inputs(config.out, inputs)
            # 3. Fit or load the alignments, and fill the caches of teacher outputs.
            supervisions = build_supervisions(config, setup)
            # 4. Train from the first step.
            return train(config, setup, supervisions, directory, knn, saved=None)


def resume(
    path: Path,
    teacher: Backbone | Sequence[Backbone] | None = None,
    knn: KnnMonitor | None = None,
    *,
    device: DeviceName | None = None,
    workers: Workers | None = None,
    log_every: int | None = None,
    save_every: int | None = None,
    save_minutes: float | None = None,
    places: Mapping[str, Any] | None = None,
) -> Path:
    """Resume a run from its last state; on the CPU the weights end bit-identical to those of an uninterrupted run.

    Args:
        path: the run directory.
        teacher, knn: as passed to `distill`.
        device, workers, log_every, save_every, save_minutes: replace the settings that the run began with; None keeps
            them.
        places: where inputs lie now that were moved, see `stillroom.runs.configs.to_places`.

    Raises:
        ValueError: no run directory, inputs that changed since, or a state that an older version wrote.
    """
    # 0. A finished run is left alone.
    often = {"log_every": log_every, "save_every": save_every, "save_minutes": save_minutes}
    config = load_config(path, DistillConfig, UNIONS, places, device=device, workers=workers, **often)
    if (path / RESULTS).exists():
        return path
    # 1. Validate settings, list the images, build teachers and students.
    setup = build_setup(config, teacher, has_knn=knn is not None)
    refuse_changed_inputs(path, read_run_inputs(config, setup))
    # 2. Reopen the run directory, and check that its state belongs to these images.
    if setup.run.is_main:
        record_moved(path, places or {})
    cleanly, fast = failing_cleanly(path, new=False), fast_float32(setup.run.device)
    with guarded(path, setup.run, patient=config.if_exists == "resume"), cleanly, fast:
        if any(setup.run.gather((path / RESULTS).exists())):  # another process finished it before this one's claim
            return path
        directory, saved = RunDirectory.reopen(path, setup.run, batch_size=config.batch_size)
        check_state(config, saved, setup.images.train)
        # 3. Load the alignments, and complete the caches of teacher outputs.
        supervisions = build_supervisions(config, setup)
        # 4. Train from the step after the state's.
        return train(config, setup, supervisions, directory, knn, saved)


def check_state(config: DistillConfig, saved: Mapping[str, Any] | None, files: Source) -> None:
    """Refuse a saved state that cannot be resumed from.

    Args:
        config: the run.
        saved: its last state; None if none was saved yet.
        files: the images to train on, as they are now.

    Raises:
        ValueError: an older version wrote the state, or the images have changed since.
    """
    if saved is not None and "losses" not in saved:
        raise ValueError(f"{config.out} was begun by stillroom-distill 0.2.0 or older: resume it with that version")
    if saved is not None and saved["data_fingerprint"] != files.fingerprint:
        raise ValueError(f"the images in {config.data} changed since {config.out} began: it cannot be resumed")


def train(
    config: DistillConfig,
    setup: RunSetup,
    supervisions: list[Supervision],
    directory: RunDirectory,
    knn: KnnMonitor | None,
    saved: Mapping[str, Any] | None,
) -> Path:
    """Train from a saved state (None: from the first step) to the last step, and write checkpoints and results."""
    run, images = setup.run, setup.images
    state = build_state(config, setup, saved)
    feed = build_feed(config, setup, supervisions, state)
    monitor = build_monitor(config, setup, supervisions, feed.steps_per_epoch, knn)

    # The nets and the loss as the loop calls them: held in the number format, averaged over processes.
    teachers: list[Any] = [] if feed.caches else [net.held(config.amp, run.device) for net in setup.teachers]
    students: list[Any] = [wrap_student(net, run, config.sync_batch_norm) for net in setup.students]
    weights = [one.weight for one in supervisions]
    compute_loss = DistillationLoss(config.distance, config.loss_weight, config.dense, weights)

    # Measure the untrained students, to judge later what was learned.
    if saved is None and images.held_out is not None:
        state.untrained = monitor.measure(state.eval_models(), labelled=False)[1]

    progress = Progress(len(images.train) * config.epochs, run, config.method, done=state.step * config.batch_size)
    if images.held_out is None and config.monitor.held_out:
        progress.note(nothing_held_out(len(images.train), config.monitor.held_out))
    warn(progress, batch_warnings(config.batch_size, run))
    trial, is_compiled = CompileTrial(run.device), False
    meter, has_warned, seconds_before = Meter(), False, state.seconds
    clock_every = 1 if run.world_size == 1 else CLOCK_EVERY
    for batch in progress.over(prefetch(feed.loader, run.device)):
        # Name the unreadable images; of each batch some must be readable.
        progress.skip(batch.broken)
        refuse_short_batch(batch, setup.students)

        # Seed dropout and drop path by the step, so that a resumed run draws what an uninterrupted one draws.
        epoch = (state.step + 0.5) / feed.steps_per_epoch
        seed_everything(config.seed, state.step, run.rank)

        # Compile the nets after the first steps, with which --compile compares the next ones.
        if config.compile and not is_compiled and state.step >= EAGER_STEPS:
            teachers, students, is_compiled = compiled(teachers), compiled(students), True

        # Forward: teachers, or their cached outputs, and students, each on its own rendering of the images.
        views = batch.on(run.device)
        with autocast(config.amp, run.device):
            if feed.caches:
                rows = [cache.read(int(epoch), batch.indices, run.device) for cache in feed.caches]
                teacher_outputs = [TeacherOutput(features) for features in rows]
            else:
                teacher_outputs = [net(views[i]) for net, i in zip(teachers, feed.views.of_teachers, strict=True)]
            student_outputs = [net(views[i]) for net, i in zip(students, feed.views.of_students, strict=True)]

        # Loss: align each teacher's features with each student, and compare with the students' predictions.
        targets = [one.align(output.features) for one, output in zip(supervisions, teacher_outputs, strict=True)]
        loss = compute_loss(student_outputs, targets, [output.maps for output in teacher_outputs])

        # Backward: one optimiser step at the schedule's rate.
        state.advance(loss.total, lr=config.lr * config.schedule.factor(epoch, config.epochs))
        meter.add(loss.logged)
        if config.compile and (text := trial.read(state.step)):
            progress.note(text)
        step, epochs_done = state.step, state.step / feed.steps_per_epoch

        # Warn once of a collapse: features that hardly differ over a batch.
        if step % CHECK_COLLAPSE_EVERY == 0 and not has_warned and run.is_main:
            has_warned = warn(progress, collapse_warnings(output.pooled for output in student_outputs))

        # Log the mean losses since the last line; one that is NaN or infinite stops the run.
        if step % config.log_every == 0 or epochs_done == config.epochs:
            log_losses(state, meter, run, progress, directory, epochs_done)

        # Read the clock; the one that --monitor.hours goes by is one for all processes, and its reading waits for them.
        if step % clock_every == 0 or epochs_done == config.epochs:
            seconds = seconds_before + progress.seconds
            state.seconds = run.gather(seconds)[0] if config.monitor.hours else seconds

        # Measure the students at the end of some epochs, and save the best ones.
        is_due = epochs_done.is_integer() and monitor.is_due(int(epochs_done))
        if is_due and measure_students(config, state, monitor, progress, directory, int(epochs_done)):
            write_students(config, setup, supervisions, state.eval_models(), suffix="-best")

        # Keep the students of every Nth epoch, before a state that would resume after them.
        if config.keep_every and epochs_done.is_integer() and not int(epochs_done) % config.keep_every:
            notes = (f"the student after epoch {int(epochs_done)} of {config.epochs}",)
            kept = state.eval_models()
            write_students(config, setup, supervisions, kept, suffix=f"@{int(epochs_done)}", notes=notes)

        # Save the state to resume from; stop early when patience or time is used up.
        stop = state.reason_to_stop(config.monitor, feed.last_step)
        if stop and meter.steps:
            log_losses(state, meter, run, progress, directory, epochs_done)
        if directory.is_due(step, config.save_every, config.save_minutes) or stop:
            directory.save_state({**state.state_dict(), "data_fingerprint": images.train.fingerprint})
        if stop:
            progress.note(f"stopped at step {step}: {stop}")
            break

    # A run that is out of patience ends with its best students, every other one with its last; warn as at a last step.
    ends_with_best = state.is_out_of_patience(config.monitor, feed.last_step) and state.best.step > 0  # 0: all NaN
    metrics = outcome_metrics(config, state, ends_with_best=ends_with_best)
    if state.step < feed.last_step and run.is_main:
        warn(progress, learning_warnings(config, metrics, state.untrained))

    # Write the students' checkpoints and results.json, then leave the process group.
    progress.close()
    directory.close()
    broken = sorted({sentence for sentences in run.gather(progress.broken) for sentence in sentences})
    write_run_results(
        config, setup, supervisions, state, metrics, broken, progress.seconds, ends_with_best=ends_with_best
    )
    run.wait()  # every process finds results.json when this returns
    run.close()
    return config.out


def refuse_short_batch(batch: Batch, students: Sequence[StudentModel]) -> None:
    """Refuse a batch without readable images, or with one where batch norm needs two.

    Args:
        batch: what is left of it, with the sentences of its unreadable images.
        students: in training.

    Raises:
        ValueError: the batch cannot be trained on.
    """
    reason = f", for instance: {batch.broken[0]}" if batch.broken else ""
    if not len(batch):
        raise ValueError(f"no image of a whole batch could be read{reason}")
    if len(batch) == 1 and any(student.needs_two_images for student in students):
        raise ValueError(
            f"one image is left of a batch, and the student's batch norm needs two{reason}; pass a larger "
            f"--batch-size, or remove the unreadable images and start again"
        )


def build_state(config: DistillConfig, setup: RunSetup, saved: Mapping[str, Any] | None) -> TrainState:
    """The state of training, as it was saved, or at the first step."""
    optimizer = build_optimizer(config.optimizer, setup.students, lr=config.lr, weight_decay=config.weight_decay)
    state = TrainState(
        setup.students, optimizer, config.ema, scales_loss=choose_amp(config.amp, setup.run.device) == "fp16"
    )
    if saved is not None:
        state.load_state_dict(saved)
    return state


@dataclass(frozen=True, kw_only=True)
class Feed:
    """The data of the loop.

    Args:
        loader: the batches that are left.
        views: which of a batch's views each net sees.
        caches: of each teacher's outputs; empty where the teachers run in every step.
        steps_per_epoch: batches in one pass over the images.
        last_step: of the run, if it does not stop early.
    """

    loader: Iterable[Batch]
    views: Views
    caches: list[CachedTeacher]
    steps_per_epoch: int
    last_step: int


def build_feed(config: DistillConfig, setup: RunSetup, supervisions: Sequence[Supervision], state: TrainState) -> Feed:
    """The batches from the state's step on; none where the run has stopped early."""
    files = setup.images.train
    caches = [one.cache for one in supervisions if one.cache is not None]
    live_inputs = [] if caches else [net.backbone.spec.input for net in setup.teachers]
    sizes = [student.backbone.spec.input.size for student in setup.students]
    views = Views(config.view, config.teacher_view, sizes, live_inputs, colours=colours_on(setup.run.device))
    cycle = len(caches[0].stores) if caches and not isinstance(config.teacher_view, FixedView) else 0
    dataset = ImageDataset(
        files, views, seed=config.seed, on_broken=config.on_broken, cycle=cycle, as_stored=config.as_stored
    )
    passes = (len(files), config.batch_size, config.epochs, config.seed)
    batches = TrainingBatches(*passes, setup.run, start=state.step, order=config.order)
    last_step = batches.steps_per_epoch * config.epochs
    has_stopped = state.reason_to_stop(config.monitor, last_step) is not None
    loader: Iterable[Batch] = [] if has_stopped else build_loader(dataset, batches, config.workers)
    return Feed(loader=loader, views=views, caches=caches, steps_per_epoch=batches.steps_per_epoch, last_step=last_step)


def build_monitor(
    config: DistillConfig,
    setup: RunSetup,
    supervisions: Sequence[Supervision],
    steps_per_epoch: int,
    knn: KnnMonitor | None,
) -> StudentMonitor:
    """The monitor of a run; see `StudentMonitor`."""
    return StudentMonitor(
        settings=config.monitor,
        run=setup.run,
        held_out=setup.images.held_out,
        supervisions=supervisions,
        distance=config.distance,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        workers=config.workers,
        amp=config.amp,
        on_broken=config.on_broken,
        knn=knn,
    )


def log_losses(
    state: TrainState, meter: Meter, run: Run, progress: Progress, directory: RunDirectory, epochs_done: float
) -> None:
    """Write the mean losses since the last line into metrics.jsonl, and show them behind the progress bar.

    Raises:
        DivergedError: a loss is NaN or infinite.
    """
    state.losses = meter.read(run)
    refuse_infinite(state.losses, state.step, directory.kept)
    lap = {**progress.lap(), "lr": state.optimizer.param_groups[0]["lr"], "epoch": epochs_done}
    directory.log(state.step, {**state.losses, **lap, "broken": len(progress.broken)})
    agreement = {name: value for name, value in state.measured.items() if name.startswith(AGREEMENT)}
    progress.show(loss=state.losses["loss"], **agreement, wait=lap["data_wait_share"])


def measure_students(
    config: DistillConfig,
    state: TrainState,
    monitor: StudentMonitor,
    progress: Progress,
    directory: RunDirectory,
    epoch: int,
) -> bool:
    """Measure the students after an epoch, log and judge the result; return whether it is the best so far."""
    students = state.eval_models()
    for student in students:  # every process measures, and the main one saves, the main one's batch-norm statistics
        broadcast_buffers(student, monitor.run)
    score, state.measured = monitor.measure(students)
    directory.log(state.step, state.measured)
    progress.note(f"epoch {epoch}", state.measured)
    if monitor.is_judged(epoch):
        warn(progress, learning_warnings(config, state.measured, state.untrained))
    return state.best.update(score, state.step)


def warn(progress: Progress, warnings: Sequence[str]) -> bool:
    """Print warnings above the progress bar; return whether there were any."""
    for text in warnings:
        progress.note(f"warning: {text}")
    return bool(warnings)
