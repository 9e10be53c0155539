"""`distill auto`: inspect the images, the nets and the device, and choose the settings of a run from a table."""

import math
import os
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from stillroom.backbone import build_backbone
from stillroom.backbone.cache_folder import cache_directory
from stillroom.backbone.manifest import MANIFEST, read_manifest
from stillroom.backbone.names import RANDOM, is_checkpoint
from stillroom.backbone.spec import BackboneSpec
from stillroom.distill import presets
from stillroom.distill.auto_config import AUTO, AutoConfig
from stillroom.distill.config import Cache, DistillConfig, Monitor
from stillroom.distill.data import MIN_HELD_OUT, split_held_out
from stillroom.distill.recipe import Choice, Workload, choose_settings, explain, follows_paper, has_svd
from stillroom.distill.slots import LinearHead, Raw, SvdPts
from stillroom.distill.train import distill
from stillroom.distill.views import KdepView
from stillroom.images import BrokenImageError, Source, read_unlabelled
from stillroom.images.decode import open_image
from stillroom.images.formats import suffix
from stillroom.images.source import FileReader
from stillroom.runs import Run
from stillroom.runs.hardware import cores_per_process, has_bf16
from stillroom.runs.run_files import read_metrics
from stillroom.runs.schedule import Cosine

MIN_IMAGES = 16
_SAMPLE = 200  # images whose size is read
_TRIAL_STEPS = 8  # steps that measure the speed for --hours
_MARGIN = 0.9  # fraction of --hours that the plan uses


def plan(config: AutoConfig) -> DistillConfig:
    """Choose the settings of a run by the table, where no flag sets them, and print them with their reasons.

    Raises:
        ValueError: too few images, none that can be read, unknown nets, too few hours.
    """
    run = Run.start(config.device)
    files = read_unlabelled(config.data, config.columns)
    work = run.gather(inspect_workload(config, files, run))[0]  # one decision for all processes
    choices = choose_settings(config, work)
    if config.hours is not None and config.epochs is None:
        epochs = fit_hours(build_config(config, work, choices), files, config.hours, run)
        choices = choose_settings(replace(config, epochs=epochs.value), work) | {"epochs": epochs}
    if run.is_main:
        print(explain(config.method, work, choices))
    return build_config(config, work, choices)


def inspect_workload(config: AutoConfig, files: Source, run: Run) -> Workload:
    """Read what the table needs to know of the images, the nets and the device.

    Raises:
        ValueError: fewer than 16 images; none of the sampled ones can be read; unknown nets.
    """
    if len(files) < MIN_IMAGES:
        raise ValueError(f"{config.data} holds {len(files)} images: a run needs at least {MIN_IMAGES}")
    students, teachers = [read_spec(name) for name in config.student], [read_spec(name) for name in config.teacher]
    widest = max(students, key=lambda spec: spec.dim)
    held_out = held_out_fraction(len(files)) if config.held_out is None else config.held_out
    train, rest = split_held_out(files, held_out, config.seed)
    return Workload(
        num_images=len(train),
        held_out=held_out,
        num_held_out=len(rest or ()),
        short_side=median_short_side(files),
        student_dim=widest.dim,
        student_size=config.student_size or widest.input.size,
        teacher_dim=min(spec.dim for spec in teachers),
        device=run.device.type,
        processes=run.world_size,
        cores=cores_per_process(),
        bf16=has_bf16(run.device),
        free_bytes=free_bytes(cache_directory("teacher-outputs")),
    )


def held_out_fraction(num_images: int) -> float:
    """The fraction of the images to hold out: 2 %; with few images up to a tenth, to reach 64; at least 8 images."""
    return min(max(0.02, 64 / num_images), max(0.1, MIN_HELD_OUT / num_images))


def median_short_side(files: Source) -> int:
    """The median short side, pixels, of 200 images spread over the folder; only their headers are read."""
    sides = []
    for index in range(0, len(files), math.ceil(len(files) / _SAMPLE)):
        try:
            with files.as_file(index) as file, open_image(file) as image:
                sides.append(min(image.size))
        except (BrokenImageError, OSError):
            continue  # the run itself refuses unreadable images, or names and counts them
    if not sides:
        raise ValueError(f"none of the sampled images of {files.root} can be read, the first is {files.where(0)}")
    return int(statistics.median(sides))


def read_spec(name: str) -> BackboneSpec:
    """The specification of a checkpoint, or of a net by its name."""
    if is_checkpoint(name):
        return read_manifest(Path(name) / MANIFEST).backbone
    return build_backbone(name.removeprefix(RANDOM)).spec


def free_bytes(folder: Path) -> int:
    """The free bytes on the disk of a folder, which need not exist yet."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))  # noqa: PTH110
    return shutil.disk_usage(nearest).free


def build_config(config: AutoConfig, work: Workload, choices: dict[str, Choice]) -> DistillConfig:
    """Build the config of a run from the chosen settings."""
    value = {name: choice.value for name, choice in choices.items()}
    preset = presets.simreg if config.method == "simreg" else presets.kdep
    base = preset(teacher=config.teacher, student=config.student, data=config.data, out=config.out)
    base = replace(base, columns=config.columns)
    if config.method == "kdep" and has_svd(work):
        base = replace(base, alignment=SvdPts(zero_fill=True))  # the rank may be lower than the student's width
    elif config.method == "kdep":
        base = replace(base, alignment=Raw(), head=LinearHead(batch_norm="after"))
    if not follows_paper(work):
        base = replace(base, view=KdepView(), weight_decay=5e-4)  # as in the pilots of both methods
    return replace(
        base,
        method=f"{AUTO}{config.method}",
        teacher=replace(base.teacher, size=() if config.teacher_size is None else (config.teacher_size,)),
        student=replace(base.student, size=() if config.student_size is None else (config.student_size,)),
        view=replace(base.view, min_scale=value["min_scale"]),
        epochs=value["epochs"],
        batch_size=value["batch_size"],
        lr=value["lr"],
        loss_weight=value["loss_weight"],
        schedule=Cosine(warmup_epochs=value["warmup_epochs"]),
        amp=value["amp"],
        cache=Cache(views=value["cache_views"], keep="outputs"),
        monitor=Monitor(
            knn=config.knn,
            every=value["every"],
            held_out=work.held_out,
            patience=value["patience"],
            hours=config.hours,
        ),
        seed=config.seed,
        device=config.device,
        workers=value["workers"],
        on_broken=config.on_broken,
        data_licence=config.data_licence,
        if_exists=config.if_exists,
    )


def fit_hours(planned: DistillConfig, files: Source, hours: float, run: Run) -> Choice:
    """Choose the epochs of a planned run that fit into some hours, by the measured speed of a few steps.

    Raises:
        ValueError: not even one epoch fits; several processes.
    """
    if run.world_size > 1:
        raise ValueError("--hours measures the speed of one process: under torchrun pass --epochs")
    epoch_seconds = len(files) / trial_speed(planned, files)
    num_epochs = _MARGIN * 3600 * hours / epoch_seconds - 1  # less the pass that fits the alignment
    if num_epochs < 1:
        raise ValueError(
            f"--hours {hours:g} is too short: an epoch takes {epoch_seconds / 3600:.2g} h and the alignment as long; "
            f"pass more hours, or train on part of the images (tools/make_subset.py)"
        )
    value = int(min(planned.epochs, num_epochs))
    reason = f"{value} of {planned.epochs} fit into {hours:g} h at {len(files) / epoch_seconds:.0f} images/s"
    return Choice(name="epochs", value=value, reason=reason)


def list_some(files: Source, count: int, folder: Path) -> Path:
    """A source of the first images: a list of their files, or copies of what lies in archives or elsewhere."""
    if isinstance(files.reader, FileReader):
        file_list = folder / "images.txt"
        file_list.write_text("".join(f"{path.resolve()}\n" for path in files.paths[:count]), encoding="utf-8")
        return file_list
    copies = folder / "images"
    copies.mkdir()
    for index in range(count):
        (copies / f"{index:09d}{suffix(files.name(index)) or '.png'}").write_bytes(files.read(index))
    return copies


def trial_speed(planned: DistillConfig, files: Source) -> float:
    """Images per second of a planned run without a cache, over a few steps in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        count = min(len(files), 2 * _TRIAL_STEPS * planned.batch_size)
        trial = replace(
            planned,
            data=list_some(files, count, Path(folder)),
            out=Path(folder) / "run",
            alignment=Raw(),
            head=planned.head if isinstance(planned.alignment, Raw) else LinearHead(),
            epochs=1,
            cache=Cache(),
            monitor=Monitor(held_out=0.0),
            log_every=max(1, count // planned.batch_size // 2),
        )
        return float(read_metrics(distill(trial))[-1]["images_per_second"])
