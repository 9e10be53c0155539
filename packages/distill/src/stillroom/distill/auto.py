"""`distill auto`: look at the images, the nets and the device, and make the run that the table says."""

import math
import os
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError

from stillroom.backbone import ImageFiles, Run, build_backbone, read_unlabelled
from stillroom.backbone.manifest import MANIFEST, read_manifest
from stillroom.backbone.names import RANDOM, is_checkpoint
from stillroom.backbone.run_files import read_metrics
from stillroom.backbone.schedule import Cosine
from stillroom.backbone.spec import BackboneSpec
from stillroom.backbone.store import cache_directory
from stillroom.distill import presets
from stillroom.distill.config import AutoConfig, Cache, DistillConfig, Monitor
from stillroom.distill.monitor import MIN_HELD_OUT, split_held_out
from stillroom.distill.recipe import Choice, Workload, choose, explain, follows_paper, has_svd
from stillroom.distill.slots import LinearHead, Raw, SvdPts
from stillroom.distill.train import distill
from stillroom.distill.views import KdepView

MIN_IMAGES = 16
_SAMPLE = 200  # images whose size is read
_TRIAL_STEPS = 8  # steps that measure the speed behind --hours
_MARGIN = 0.9  # share of --hours that the plan fills


def plan(config: AutoConfig) -> DistillConfig:
    """The run that the table, and the flags that were given, make of these images and nets; printed with reasons.

    Raises:
        ValueError: too few images, none that can be read, unknown nets, too few hours.
    """
    run = Run.start(config.device)
    files = read_unlabelled(config.data)
    work = run.gather(survey(config, files, run))[0]  # what one process sees of its disk counts for all
    choices = choose(config, work)
    if config.hours is not None and config.epochs is None:
        fitting = fit_hours(build_config(config, work, choices), files, config.hours, run)
        choices = choose(replace(config, epochs=fitting.value), work) | {"epochs": fitting}
    if run.is_main:
        print(explain(config.method, work, choices))
    return build_config(config, work, choices)


def survey(config: AutoConfig, files: ImageFiles, run: Run) -> Workload:
    """Look at the images, the nets and the device.

    Raises:
        ValueError: fewer than 16 images; none of those that are tried can be read; unknown nets.
    """
    if len(files) < MIN_IMAGES:
        raise ValueError(f"{config.data} holds {len(files)} images: {MIN_IMAGES} are the fewest that a run can use")
    students, teachers = [read_spec(name) for name in config.student], [read_spec(name) for name in config.teacher]
    widest = max(students, key=lambda spec: spec.dim)
    held_out = held_out_share(len(files))
    return Workload(
        num_images=len(split_held_out(files, held_out, config.seed)[0]),
        held_out=held_out,
        short_side=median_short_side(files),
        student_dim=widest.dim,
        student_size=config.student_size or widest.input.size,
        teacher_dim=min(spec.dim for spec in teachers),
        device=run.device.type,
        processes=run.world_size,
        cores=max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
        bf16=has_bf16(run.device),
        free_bytes=free_bytes(cache_directory("teacher-outputs")),
    )


def held_out_share(num_images: int) -> float:
    """2 % of the images; of few up to a tenth, so that 64 of them show a figure; 8 images at least."""
    return min(max(0.02, 64 / num_images), max(0.1, MIN_HELD_OUT / num_images))


def median_short_side(files: ImageFiles) -> int:
    """Median short side in pixels of 200 images spread over the folder; only their headers are read."""
    sides = []
    for path in files.paths[:: math.ceil(len(files) / _SAMPLE)]:
        try:
            with Image.open(path) as image:
                sides.append(min(image.size))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            continue  # the run itself refuses what cannot be read, or names and counts it
    if not sides:
        raise ValueError(
            f"none of the images of {files.root} that were tried can be read, the first is {files.paths[0]}"
        )
    return int(statistics.median(sides))


def read_spec(name: str) -> BackboneSpec:
    """The specification of a checkpoint, or of a net by its name."""
    if is_checkpoint(name):
        return read_manifest(Path(name) / MANIFEST).backbone
    return build_backbone(name.removeprefix(RANDOM)).spec


def usable_cores() -> int:
    """CPU cores that this process may use, the others on its machine included."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, which may still have to be made."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free


def has_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 instructions: on a CPU without them bf16 is many times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def build_config(config: AutoConfig, work: Workload, choices: dict[str, Choice]) -> DistillConfig:
    """The run of a method with the chosen settings."""
    value = {name: choice.value for name, choice in choices.items()}
    preset = presets.simreg if config.method == "simreg" else presets.kdep
    made = preset(teacher=config.teacher, student=config.student, data=config.data, out=config.out)
    if config.method == "kdep" and has_svd(work):
        made = replace(made, alignment=SvdPts(zero_fill=True))  # the rank may be lower than the student's width
    elif config.method == "kdep":
        made = replace(made, alignment=Raw(), head=LinearHead(batch_norm="after"))
    if not follows_paper(work):
        made = replace(made, view=KdepView(), weight_decay=5e-4)  # in the pilots of both methods
    return replace(
        made,
        method=f"auto-{config.method}",
        teacher=replace(made.teacher, size=() if config.teacher_size is None else (config.teacher_size,)),
        student=replace(made.student, size=() if config.student_size is None else (config.student_size,)),
        view=replace(made.view, min_scale=value["min_scale"]),
        epochs=value["epochs"],
        batch_size=value["batch_size"],
        lr=value["lr"],
        loss_weight=value["loss_weight"],
        schedule=Cosine(warmup_epochs=value["warmup_epochs"]),
        amp=value["amp"],
        cache=Cache(views=value["cache_views"], keep="outputs"),
        monitor=Monitor(
            knn=config.knn,
            every=max(1, value["epochs"] // 15),
            held_out=work.held_out,
            patience=5,
            hours=config.hours,
        ),
        seed=config.seed,
        device=config.device,
        workers=value["workers"],
        on_broken=config.on_broken,
        data_licence=config.data_licence,
    )


def fit_hours(planned: DistillConfig, files: ImageFiles, hours: float, run: Run) -> Choice:
    """The epochs of a plan that fit into some hours, by the speed of a few steps.

    Raises:
        ValueError: not one epoch fits; several processes.
    """
    if run.world_size > 1:
        raise ValueError("--hours measures the speed of one process: under torchrun give --epochs")
    seconds = len(files) / trial_speed(planned, files)  # of an epoch; the pass that fits the alignment takes one more
    fit = int(_MARGIN * 3600 * hours / seconds) - 1
    if fit < 1:
        raise ValueError(
            f"--hours {hours:g} is too short: an epoch takes {seconds / 3600:.2g} h and the alignment as long; "
            f"give more, or a part of the images (tools/make_subset.py)"
        )
    epochs = min(planned.epochs, fit)
    return Choice(name="epochs", value=epochs, reason=f"{hours:g} h hold {fit}, at {len(files) / seconds:.0f} images/s")


def trial_speed(planned: DistillConfig, files: ImageFiles) -> float:
    """Images per second of a plan, its teachers running live, over a few steps in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        some = Path(folder) / "images.txt"
        count = min(len(files), 2 * _TRIAL_STEPS * planned.batch_size)
        some.write_text("".join(f"{path.resolve()}\n" for path in files.paths[:count]), encoding="utf-8")
        trial = replace(
            planned,
            data=some,
            out=Path(folder) / "run",
            alignment=Raw(),
            head=planned.head if isinstance(planned.alignment, Raw) else LinearHead(),
            epochs=1,
            cache=Cache(),
            monitor=Monitor(held_out=0.0),
            log_every=max(1, count // planned.batch_size // 2),
        )
        return float(read_metrics(distill(trial))[-1]["images_per_second"])
