"""`distill auto`: a recipe chosen from the images, the nets and the device. docs/recipes.md states the table."""

import math
import os
import shutil
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from stillroom.backbone import ImageFiles, Run, build_backbone, read_unlabelled
from stillroom.backbone.manifest import read_manifest
from stillroom.backbone.registry import RANDOM, is_checkpoint
from stillroom.backbone.results import format_table
from stillroom.backbone.run import read_metrics
from stillroom.backbone.schedule import Cosine
from stillroom.backbone.spec import BackboneSpec
from stillroom.backbone.store import cache_directory, store_bytes
from stillroom.distill import presets
from stillroom.distill.config import AutoConfig, Cache, DistillConfig, Monitor
from stillroom.distill.monitor import MIN_HELD_OUT, split_held_out
from stillroom.distill.slots import LinearHead, Raw, SvdPts
from stillroom.distill.train import distill
from stillroom.distill.views import KdepView

FLAGS = {"warmup_epochs": "schedule.warmup-epochs", "min_scale": "view.min-scale", "cache_views": "cache.views"}
"""Flags that are not their field's name with hyphens."""
SMALL = 50_000
"""Images below which the recipe of few images holds, and above which, on a GPU, the paper's."""
MIN_IMAGES = 16
_SAMPLE = 200  # images whose size is read
_TRIAL_STEPS = 8  # steps that measure the speed behind --hours
_MARGIN = 0.9  # share of --hours that the plan fills


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What the table is looked up by.

    Args:
        num_images: images to train on.
        held_out: share of all images that is held out.
        short_side: their median short side, pixels.
        student_dim: width of the widest student's pooled feature.
        student_size: its input side, pixels.
        teacher_dim: width of the narrowest teacher's pooled feature.
        device: cpu, cuda or mps.
        cores: CPU cores that this process may use.
        bf16: whether the device has bfloat16 instructions.
        free_bytes: room on the disk of the cache.
    """

    num_images: int
    held_out: float
    short_side: int
    student_dim: int
    student_size: int
    teacher_dim: int
    device: str
    cores: int
    bf16: bool
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One setting of a recipe: the field of `AutoConfig` that replaces it, its value, and why it was chosen."""

    name: str
    value: Any
    reason: str


def plan(config: AutoConfig) -> DistillConfig:
    """The run that the table, and the flags that were given, make of these images and nets; printed with reasons.

    Raises:
        ValueError: too few images, none that can be read, unknown nets, too few hours.
    """
    run = Run.start(config.device)
    files = read_unlabelled(config.data)
    work = survey(config, files, run)
    choices = choose(config, work)
    planned = build_config(config, work, choices)
    if config.hours is not None and config.epochs is None:
        choices["epochs"] = fit_hours(planned, files, config.hours, run)
        planned = build_config(config, work, choices)
    if run.is_main:
        print(explain(work, choices))
    return planned


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
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
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
        return read_manifest(Path(name) / "manifest.json").backbone
    return build_backbone(name.removeprefix(RANDOM)).spec


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, which may still have to be made."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free


def has_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 instructions: on a CPU without them bf16 is many times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def choose(config: AutoConfig, work: Workload) -> dict[str, Choice]:
    """The table of docs/recipes.md, line by line; a flag that was given takes the place of the table's value."""
    choices: dict[str, Choice] = {}

    def pick(name: str, value: Any, reason: str) -> Any:
        given = getattr(config, name)
        chosen = value if given is None else given
        choices[name] = Choice(name=name, value=chosen, reason=reason if given is None else "given")
        return chosen

    n, gpu = work.num_images, work.device == "cuda"
    paper = gpu and n >= SMALL  # KDEP's own recipe; else that of the study of methods
    few = f"fewer than {SMALL:,} images" if gpu else "few steps"
    batch = pick(
        "batch_size", 512 if paper else min(64, n // 4), "KDEP's" if paper else f"{few}: small ones, 4 an epoch"
    )
    steps_per_epoch = max(n // batch, 1)
    steps = 22_500 if gpu else 2_200
    epochs = pick("epochs", max(1, round(steps / steps_per_epoch)), f"about {steps:,} steps")
    pick("lr", 0.3 if paper else 1.0, "KDEP's" if paper else "best of the pilots")
    if paper or config.method == "simreg":
        pick("loss_weight", 3.0 if paper else 0.3, "KDEP's" if paper else "best of the pilots")
    else:
        wide = f"0.3 for 64 dimensions, the student has {work.student_dim}"
        pick("loss_weight", round(0.3 / 64 * work.student_dim, 2), wide)
    pick("warmup_epochs", 0.0, "none was needed")
    pick("min_scale", 0.08 if paper else 0.35, "KDEP's" if paper else "of few images larger crops")
    instructions = f"{work.device} {'has' if work.bf16 else 'lacks'} bfloat16 instructions"
    pick("amp", "bf16" if work.bf16 else "none", instructions)
    pick("workers", max(1, min(work.cores - 1, 16)), f"{work.cores} cores, one for the nets")
    views = cached_views(work, epochs)
    pick("cache_views", views, "the teacher runs once for each view kept" if views else "the teacher runs live")
    return choices


def cached_views(work: Workload, epochs: int) -> int:
    """Views of each image to keep: each comes four times, if they fit into a tenth of the free disk; none on a GPU."""
    views = min(math.ceil(epochs / 4), 40)
    fits = views * store_bytes(work.num_images, work.teacher_dim) <= work.free_bytes / 10
    return views if fits and epochs >= 8 and work.device != "cuda" else 0


def build_config(config: AutoConfig, work: Workload, choices: dict[str, Choice]) -> DistillConfig:
    """The run of a method with the chosen settings."""
    value = {name: choice.value for name, choice in choices.items()}
    preset = presets.simreg if config.method == "simreg" else presets.kdep
    made = preset(teacher=config.teacher, student=config.student, data=config.data, out=config.out)
    if config.method == "kdep" and svd_cannot(work):
        made = replace(made, alignment=Raw(), head=LinearHead(batch_norm="after"))
    elif config.method == "kdep":
        made = replace(made, alignment=SvdPts(zero_fill=True))  # the rank may be lower than the student's width
    return replace(
        made,
        method=f"auto-{config.method}",
        teacher=replace(made.teacher, size=() if config.teacher_size is None else (config.teacher_size,)),
        student=replace(made.student, size=() if config.student_size is None else (config.student_size,)),
        view=KdepView(min_scale=value["min_scale"]),
        epochs=value["epochs"],
        batch_size=value["batch_size"],
        lr=value["lr"],
        loss_weight=value["loss_weight"],
        weight_decay=5e-4,
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


def svd_cannot(work: Workload) -> bool:
    """Whether SVD has nothing to give: a student wider than the teacher, or no more images than components."""
    return work.student_dim > work.teacher_dim or work.num_images <= work.student_dim


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


def explain(work: Workload, choices: dict[str, Choice]) -> str:
    """What was seen, and each choice with its reason, as a table."""
    seen = (
        f"{work.num_images:,} images to train on, about {work.short_side} px; student {work.student_dim}-d at "
        f"{work.student_size} px, teacher {work.teacher_dim}-d; {work.device}, {work.cores} cores"
    )
    flags = [FLAGS.get(name, name.replace("_", "-")) for name in choices]
    rows = [[f"--{flag}", f"{c.value}", c.reason] for flag, c in zip(flags, choices.values(), strict=True)]
    notes = []
    if work.short_side >= 4 * work.student_size:
        times = f"{work.short_side / work.student_size:.0f} times"
        notes.append(
            f"the images are {times} larger than the student's input: shrink them once, and decoding costs less"
        )
    if work.short_side * 1.5 <= work.student_size:
        notes.append(f"the images are smaller than the student's input: --student.size {work.short_side} costs less")
    return "\n".join([seen, format_table(["setting", "value", "because"], rows), *notes])
