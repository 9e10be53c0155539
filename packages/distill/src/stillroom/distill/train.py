"""The one trainer: a frozen teacher, an aligned target, a student that regresses it."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

from stillroom.backbone import (
    Backbone,
    Data,
    ImageDataset,
    ImageFiles,
    Normalize,
    Results,
    Run,
    RunDirectory,
    Teacher,
    load_backbone,
    read_unlabelled,
    replace_input,
    save_checkpoint,
    weights_sha256,
    write_results,
)
from stillroom.backbone.configs import config_from_json, config_to_dict, config_to_json
from stillroom.backbone.files import write_file
from stillroom.backbone.images import TrainingBatches, build_loader, resize_batch
from stillroom.backbone.progress import Progress
from stillroom.backbone.provenance import made_by
from stillroom.backbone.registry import RANDOM, is_checkpoint
from stillroom.backbone.results import CheckpointRecord, DatasetRecord, read_results
from stillroom.backbone.run import DeviceName, read_config, seed_everything
from stillroom.backbone.spec import inherit_licence
from stillroom.distill.alignment import AlignedTarget
from stillroom.distill.alignment_file import AlignmentInputs, encode_alignment, load_alignment
from stillroom.distill.config import UNIONS, DistillConfig, Net
from stillroom.distill.fit import find_alignment, given_alignment
from stillroom.distill.views import KdepTransform

PACKAGE = "stillroom-distill"
METHOD = "kdep"
PROTOCOL = "kdep/v1"
ALIGNMENT = "alignment.safetensors"
STUDENT = "student"


def distill(config: DistillConfig, teacher: Backbone | None = None) -> Path:
    """Distil a teacher into a student without labels (KDEP), and return the run directory.

    Args:
        config: the run.
        teacher: a net of your own, wrapped by `Backbone.from_module`; `config.teacher.name` is then only its label.

    Raises:
        ValueError: bad input, each in one sentence; `CheckpointError` is one of them.

    Reference: He et al., "Knowledge Distillation as Efficient Pre-training", CVPR 2022.
    """
    run = Run.start(config.device)
    files = read_unlabelled(config.data)
    check(config, files, run)
    teacher = build_teacher(config.teacher, teacher).to(run.device)
    student = build_student(config).to(run.device)
    directory = RunDirectory.create(config.out, config_to_json(config, UNIONS), run)
    target, inputs = align(config, run, files, teacher, student.spec.dim)
    return train(config, run, directory, files, teacher, student, target, inputs, state=None)


def resume(
    path: Path,
    teacher: Backbone | None = None,
    *,
    device: DeviceName | None = None,
    workers: int | None = None,
    log_every: int | None = None,
) -> Path:
    """Go on with a run from its last state; on the CPU the weights end equal to the bit to a run never stopped.

    Args:
        path: the run directory.
        teacher: as given to `distill`, where one was.
        device, workers, log_every: replace what the run began with; None keeps it.

    Raises:
        ValueError: no run directory, or images that changed since.
    """
    config = config_from_json(read_config(path), DistillConfig, UNIONS)
    changes: dict[str, Any] = {"device": device, "workers": workers, "log_every": log_every, "out": path}
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    run = Run.start(config.device)
    if (path / "results.json").exists():
        return path
    files = read_unlabelled(config.data)
    teacher = build_teacher(config.teacher, teacher).to(run.device)
    student = build_student(config).to(run.device)
    directory, state = RunDirectory.reopen(path, run)
    target, inputs = align(config, run, files, teacher, student.spec.dim)
    if state is not None and state["data_fingerprint"] != files.fingerprint:
        raise ValueError(f"the images in {config.data} changed since {path} began: it cannot be resumed")
    return train(config, run, directory, files, teacher, student, target, inputs, state)


def train(
    config: DistillConfig,
    run: Run,
    directory: RunDirectory,
    files: ImageFiles,
    teacher: Backbone,
    student: Backbone,
    target: AlignedTarget,
    inputs: AlignmentInputs,
    state: dict[str, Any] | None,
) -> Path:
    """The loop, from `state` (None: the beginning) to the last step, and what is written at its end."""
    optimizer = torch.optim.SGD(
        student.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    step, loss_mean = 0, float("nan")
    if state is not None:
        student.net.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        step, loss_mean = state["step"], state["loss"]

    sizes = (teacher.spec.input.size, student.spec.input.size)
    dataset = ImageDataset(files, KdepTransform(config.view, max(sizes)), seed=config.seed, on_broken=config.on_broken)
    batches = TrainingBatches(len(files), config.batch_size, config.epochs, config.seed, run, start=step)
    loader = build_loader(dataset, batches, config.workers)
    teach: Any = TeacherTarget(teacher, target).to(run.device)
    learn: Any = wrap_student(student, config, run)
    normalize = Normalize(student.spec.input).to(run.device)
    autocast = torch.autocast(run.device.type, torch.bfloat16, enabled=config.amp == "bf16")
    if config.compile:
        teach, learn = torch.compile(teach), torch.compile(learn)

    student.train()
    progress = Progress(len(files) * config.epochs, run, METHOD, done=step * config.batch_size)
    loss_sum, loss_steps = torch.zeros((), device=run.device), 0
    for batch in progress.over(loader):
        progress.skip(batch.broken)
        if not len(batch):
            raise ValueError(f"no image of a whole batch could be read, for instance: {batch.broken[0]}")
        epoch = (step + 0.5) / batches.steps_per_epoch
        for group in optimizer.param_groups:
            group["lr"] = config.lr * config.schedule.factor(epoch, config.epochs)
        seed_everything(config.seed, step, run.rank)  # for nets that draw (dropout, drop path): the same when resumed
        images = batch.images.to(run.device, non_blocking=True)
        with autocast:
            wanted = teach(images)
            pooled = learn(normalize(resize_batch(images, sizes[1]))).pooled
        loss = mse_loss(pooled.float(), wanted)
        (config.loss_weight * loss).backward()
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
                    "loss": loss_mean,
                    "student": student.net.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "data_fingerprint": files.fingerprint,
                }
            )

    broken = sorted({sentence for one in run.gather(progress.broken) for sentence in one})
    finish(config, run, files, teacher, student, target, inputs, loss_mean, broken, progress.seconds)
    directory.close()
    run.wait()  # every process finds results.json when this returns
    run.close()
    return config.out


class TeacherTarget(nn.Module):
    """Pixels -> what the student is to say: resize and normalise for the teacher, run it frozen, align its feature."""

    def __init__(self, teacher: Backbone, target: AlignedTarget) -> None:
        super().__init__()
        self.teacher = teacher
        self.normalize = Normalize(teacher.spec.input)
        self.target = target

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        fed = self.normalize(resize_batch(images, self.teacher.spec.input.size))
        pooled = self.teacher(fed.contiguous(memory_format=torch.channels_last)).pooled
        with torch.autocast(pooled.device.type, enabled=False):  # the basis and the root in float32
            return self.target(pooled.float())


def check(config: DistillConfig, files: ImageFiles, run: Run) -> None:
    """Refuse settings that cannot work before there is a run directory."""
    if config.sync_batch_norm and run.device.type != "cuda":
        raise ValueError("--sync-batch-norm works on GPUs only: leave it out on this device")
    for name in ("epochs", "batch_size", "log_every", "save_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)}: it must be at least 1")
    if not 0 < config.view.min_scale <= 1:
        raise ValueError(f"--view.min-scale is {config.view.min_scale}: it must lie in (0, 1]")
    TrainingBatches(len(files), config.batch_size, config.epochs, config.seed, run)  # does the batch fit the data?


def align(
    config: DistillConfig, run: Run, files: ImageFiles, teacher: Backbone, dim: int
) -> tuple[AlignedTarget, AlignmentInputs]:
    """The run's alignment: its own from an earlier life, the given file's, a cached one, or one fitted now."""
    own = config.out / ALIGNMENT
    known = own.exists()
    run.wait()
    if known:
        target, inputs = load_alignment(own)
        return target.to(run.device), inputs
    if config.alignment_file is not None:
        target, inputs = given_alignment(config.alignment_file, teacher, config.alignment, dim, run)
    else:
        workers, on_broken = config.workers, config.on_broken
        target, inputs = find_alignment(
            teacher, files, config.alignment, dim, run, workers=workers, on_broken=on_broken
        )
    if run.is_main:
        write_file(own, encode_alignment(target, inputs))
    return target, inputs


def build_teacher(net: Net, own: Backbone | None = None) -> Backbone:
    """The teacher as the run reads it: its feature point and its input size. A random one is the same in every run."""
    seed_everything(0)
    teacher = (load_backbone(net.name) if own is None else own).eval().requires_grad_(False)
    # channels last: 1.6 times the images/s of contiguous tensors for MobileNet-V2 at 128 px on two CPU cores
    teacher = teacher.to(memory_format=torch.channels_last)
    return replace_input(teacher.at(net.feature), size=net.size, crop_fraction=net.crop_fraction)


def build_student(config: DistillConfig) -> Backbone:
    """The student with its first weights: random ones from the seed, or those of a checkpoint."""
    net = config.student
    seed_everything(config.seed)
    name = net.name if is_checkpoint(net.name) or net.name.startswith(RANDOM) else f"{RANDOM}{net.name}"
    return replace_input(load_backbone(name).at(net.feature), size=net.size, crop_fraction=net.crop_fraction)


def wrap_student(student: Backbone, config: DistillConfig, run: Run) -> nn.Module:
    """The student as the loop calls it: itself, or averaged over processes."""
    if config.sync_batch_norm:
        student.net = nn.SyncBatchNorm.convert_sync_batchnorm(student.net)
    if run.world_size == 1:
        return student
    return DistributedDataParallel(student, device_ids=[run.device] if run.device.type == "cuda" else None)


def finish(
    config: DistillConfig,
    run: Run,
    files: ImageFiles,
    teacher: Backbone,
    student: Backbone,
    target: AlignedTarget,
    inputs: AlignmentInputs,
    loss: float,
    broken: list[str],
    seconds: float,
) -> None:
    """Write the student's checkpoint and results.json."""
    if not run.is_main:
        return
    taught_by = Teacher(
        name=config.teacher.name, weights_sha256=weights_sha256(teacher.net), licence=teacher.spec.licence
    )
    student.eval()
    student.spec = replace(student.spec, licence=inherit_licence(teacher.spec.licence, config.data_licence))
    settings = config_to_dict(config, UNIONS)
    manifest = save_checkpoint(
        config.out / STUDENT,
        student,
        method=METHOD,
        package=PACKAGE,
        config=settings,
        teacher=taught_by,
        data=Data(count=len(files), fingerprint=files.fingerprint),
        alignment=encode_alignment(target, inputs),
    )
    write_results(
        config.out,
        Results(
            task="distill",
            protocol=PROTOCOL,
            datasets={"train": DatasetRecord.of(files, broken=len(broken))},
            checkpoint=CheckpointRecord(path=str(config.out / STUDENT), sha256=manifest.weights.sha256, method=METHOD),
            metrics={"loss": loss},
            seed=config.seed,
            seconds=seconds,
            made_by=made_by(PACKAGE, settings),
            extra={
                "alignment": asdict(inputs)
                | {"rank": target.svd.rank_, "dim": target.dim, "std_ratio_before_after_pts": target.std_ratio_},
                "broken": broken,
            },
        ),
    )


def summary(path: Path) -> str:
    """The last line a run prints: its directory and the one number that matters."""
    return f"{path}: loss {read_results(path).metrics['loss']:.4f} (share of the target's mean square left unexplained)"
