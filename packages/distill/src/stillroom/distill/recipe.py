"""The table of `auto`: settings chosen from the images, the nets and the device, each with its reason.

docs/recipes.md gives the table and the study behind each row.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from stillroom.distill.auto_config import AutoConfig
from stillroom.runs.hardware import MAX_CPU_WORKERS, MAX_WORKERS
from stillroom.runs.results import format_table
from stillroom.runs.store import store_bytes

FLAGS = {
    "warmup_epochs": "schedule.warmup-epochs",
    "min_scale": "view.min-scale",
    "cache_views": "cache.views",
    "held_out": "monitor.held-out",
    "every": "monitor.every",
    "patience": "monitor.patience",
}
"""Flags whose name is not their field's with hyphens."""
MANY_IMAGES = 50_000
"""From this many images, a run on a GPU follows the method's paper."""
MIN_CACHE_EPOCHS = 8
PATIENCE = 5
"""Measurements without a better one after which a run stops, with at least `SMALL_HELD_OUT` held-out images."""
SMALL_HELD_OUT = 64
FEW_IMAGES_DIM = 64
"""Width of the student in the pilots behind `FEW_IMAGES`."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The inputs of the table.

    Args:
        num_images: images to train on.
        held_out: fraction of all images that is held out.
        num_held_out: number of these images.
        short_side: their median short side, pixels.
        student_dim: width of the widest student's pooled feature.
        student_size: that student's input side, pixels.
        teacher_dim: width of the narrowest teacher's pooled feature.
        device: cpu, cuda or mps.
        processes: of the run.
        cores: CPU cores per process.
        bf16: whether the device has bfloat16 instructions.
        free_bytes: on the disk of the cache.
    """

    num_images: int
    held_out: float
    num_held_out: int
    short_side: int
    student_dim: int
    student_size: int
    teacher_dim: int
    device: str
    processes: int
    cores: int
    bf16: bool
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings that belong together. The length of training is set in steps, or in epochs."""

    batch_size: int
    lr: float
    loss_weight: float
    min_scale: float
    steps: int = 0
    epochs: int = 0

    def num_epochs(self, steps_per_epoch: int) -> int:
        """The number of passes over the images."""
        return self.epochs or max(1, round(self.steps / steps_per_epoch))


FEW_IMAGES = Recipe(batch_size=64, lr=1.0, loss_weight=0.3, min_scale=0.35, steps=2_200)
FEW_IMAGES_ON_GPU = replace(FEW_IMAGES, steps=22_500)
PAPERS = {
    "kdep": Recipe(batch_size=512, lr=0.3, loss_weight=3.0, min_scale=0.08, steps=22_500),
    "simreg": Recipe(batch_size=256, lr=0.05, loss_weight=1.0, min_scale=0.2, epochs=130),
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One chosen setting: the field of `AutoConfig` that overrides it, its value, and the reason."""

    name: str
    value: Any
    reason: str


def choose_settings(config: AutoConfig, work: Workload) -> dict[str, Choice]:
    """Apply the table of docs/recipes.md row by row; a flag overrides the table's value."""
    choices: dict[str, Choice] = {}

    def pick(name: str, value: Any, reason: str) -> Any:
        from_flag = getattr(config, name)
        chosen = value if from_flag is None else from_flag
        choices[name] = Choice(name=name, value=chosen, reason=reason if from_flag is None else "set by its flag")
        return chosen

    recipe, source = FEW_IMAGES_ON_GPU if work.device == "cuda" else FEW_IMAGES, "best of the pilots"
    if follows_paper(work):
        recipe, source = PAPERS[config.method], "the paper's"
    batch_size = max(min(recipe.batch_size, work.num_images // 4) // work.processes, 1) * work.processes
    batch_size = pick("batch_size", batch_size, f"{source}; at least 4 steps an epoch")
    steps_per_epoch = max(work.num_images // batch_size, 1)
    num_epochs = recipe.num_epochs(steps_per_epoch)
    epochs = pick("epochs", num_epochs, f"{num_epochs * steps_per_epoch:,} steps of {batch_size} images")
    pick("lr", recipe.lr, source)
    if config.method == "simreg" or follows_paper(work):
        pick("loss_weight", recipe.loss_weight, source)
    else:
        scaled = round(recipe.loss_weight * work.student_dim / FEW_IMAGES_DIM, 2)
        pick(
            "loss_weight",
            scaled,
            f"{recipe.loss_weight} for {FEW_IMAGES_DIM} dimensions, the student has {work.student_dim}",
        )
    pick("warmup_epochs", 0.0, "the pilots needed none")
    pick("min_scale", recipe.min_scale, "the paper's" if follows_paper(work) else "the pilots'")
    instructions = f"{work.device} {'has' if work.bf16 else 'lacks'} bfloat16 instructions"
    older = "fp16" if work.device == "cuda" else "none"
    pick("amp", "bf16" if work.bf16 else older, instructions)
    if work.device == "cpu":
        pick("workers", max(1, min(work.cores - 1, MAX_CPU_WORKERS)), f"{work.cores} cores, one of them for the nets")
    else:
        pick("workers", min(work.cores, MAX_WORKERS), f"{work.cores} cores")
    views = cached_views(work, epochs)
    pick("cache_views", views, "the teacher runs once per view" if views else no_cache_reason(work, epochs))
    pick("held_out", round(work.held_out, 4), f"{work.num_held_out} images: 2 % of many, a tenth of few, at least 8")
    pick("every", max(1, epochs // 15), "about 15 measurements")
    pick("patience", *choose_patience(config, work))
    return choices


def choose_patience(config: AutoConfig, work: Workload) -> tuple[int, str]:
    """Measurements without a better one after which the run stops, and why.

    The mean over n held-out images has an error that falls as 1 / sqrt(n), so fewer than 64 need more measurements.
    """
    if config.knn is not None:
        return PATIENCE, "the pilots'"
    if not work.num_held_out:
        return 0, "no image is held out"
    if work.num_held_out >= SMALL_HELD_OUT:
        return PATIENCE, "a third of the run"
    longer = math.ceil(PATIENCE * math.sqrt(SMALL_HELD_OUT / work.num_held_out))
    return longer, f"{PATIENCE} x sqrt({SMALL_HELD_OUT} / {work.num_held_out}): few images, noisy measurements"


def follows_paper(work: Workload) -> bool:
    """Whether the recipe is that of the method's paper: on a GPU, with many images."""
    return work.device == "cuda" and work.num_images >= MANY_IMAGES


def has_svd(work: Workload) -> bool:
    """Whether SVD can compute the target: a teacher as wide as the student or wider, more images than components."""
    return work.student_dim <= work.teacher_dim and work.student_dim < work.num_images


def cached_views(work: Workload, epochs: int) -> int:
    """Views per image to cache: each is used four times, if all fit into a tenth of the free disk; none on a GPU."""
    if work.device == "cuda" or epochs < MIN_CACHE_EPOCHS:
        return 0
    views = min(math.ceil(epochs / 4), 40)
    fits = views * store_bytes(work.num_images, work.teacher_dim) <= work.free_bytes / 10
    return views if fits else 0


def no_cache_reason(work: Workload, epochs: int) -> str:
    """Why no views are cached."""
    if work.device == "cuda":
        return "on a GPU the teacher runs in every step"
    if epochs < MIN_CACHE_EPOCHS:
        return f"under {MIN_CACHE_EPOCHS} epochs the teacher runs in every step"
    return "the views do not fit into a tenth of the free disk space"


def explain(method: str, work: Workload, choices: dict[str, Choice]) -> str:
    """Describe the workload, each choice with its reason as a table, and what to know about the images."""
    workload = (
        f"{work.num_images:,} images to train on, about {work.short_side} px; student {work.student_dim}-d at "
        f"{work.student_size} px, teacher {work.teacher_dim}-d; {work.device}, {work.cores} cores"
    )
    flags = [FLAGS.get(name, name.replace("_", "-")) for name in choices]
    rows = [[f"--{flag}", f"{c.value}", c.reason] for flag, c in zip(flags, choices.values(), strict=True)]
    notes = []
    if method == "simreg":
        notes.append("target: the teacher's feature, through a 4-layer MLP that is dropped afterwards")
    elif has_svd(work):
        notes.append(f"target: {work.student_dim} components of an SVD of the teacher's feature, then PTS; no head")
    else:
        notes.append(
            f"{work.num_images} images of a {work.teacher_dim}-d feature do not determine an SVD of {work.student_dim} "
            f"components: the student regresses the feature itself, through a linear head that is dropped afterwards"
        )
    if work.short_side >= 4 * work.student_size:
        ratio = f"{work.short_side / work.student_size:.0f} times"
        notes.append(
            f"the images are {ratio} larger than the student's input: shrink them once to make decoding cheaper"
        )
    if work.short_side * 1.5 <= work.student_size:
        notes.append(f"the images are smaller than the student's input: --student.size {work.short_side} is cheaper")
    return "\n".join([workload, format_table(["setting", "value", "reason"], rows), *notes])
