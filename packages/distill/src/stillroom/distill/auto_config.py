"""Settings of `auto`, which chooses those that are not passed. The docstring under each field is its `--help`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from stillroom.backbone.checks import above, within
from stillroom.backbone.flags import Amp, DeviceName, IfExists, OnBroken, Workers
from stillroom.distill.config import UNIONS, Cache, DistillConfig, Monitor, preflight
from stillroom.distill.nets import Students, Teachers
from stillroom.images.labels import USUAL, Columns
from stillroom.runs.configs import config_from_json
from stillroom.runs.run_files import read_config
from stillroom.runs.schedule import Cosine

AUTO = "auto-"
"""Prefix of the method of runs that `auto` makes: `auto-kdep`, `auto-simreg`."""


@dataclass(frozen=True, kw_only=True)
class AutoConfig:
    """A KDEP or SimReg run whose settings are chosen from the images, the nets and the device.

    docs/recipes.md gives the table of settings and the study behind each row. Every chosen setting is printed with its
    reason and written to config.json; a flag overrides it. All other settings are flags of `kdep` and `simreg`.
    """

    teacher: Annotated[tuple[str, ...], arg(metavar="NAME|DIR")]
    """Checkpoint directories, or backbone names (pretrained weights)."""
    student: Annotated[tuple[str, ...], arg(metavar="NAME|DIR")]
    """Backbone names (random initial weights) or checkpoint directories (their weights)."""
    data: Path
    """Images, labels not needed: a folder, searched with its subfolders, a text file with one path per line, a table of
    paths (.csv, .parquet), tar shards, a .zip file or a saved data set; or an address of one, s3://bucket/folder."""
    out: Path
    """Run directory to create."""
    columns: Columns = USUAL
    method: Literal["kdep", "simreg"] = "kdep"
    """Method that sets target, head and distance."""
    hours: float | None = None
    """Longest training time in hours; None: as long as the table says."""
    knn: Annotated[Path | None, arg(name="monitor.knn")] = None
    """Labelled image folder: its k-NN accuracy selects the best student and stops the run, instead of the neighbour
    agreement with the teacher on held-out images."""
    teacher_size: Annotated[int | None, arg(name="teacher.size")] = None
    """Input side of the teachers in pixels; None: that of each net's specification."""
    student_size: Annotated[int | None, arg(name="student.size")] = None
    """Input side of the students in pixels; None: that of each net's specification."""
    batch_size: int | None = None
    """Images per step, over all processes; None: chosen, as for all flags below that default to None."""
    epochs: int | None = None
    """Passes over the images."""
    lr: float | None = None
    """Base learning rate."""
    loss_weight: float | None = None
    """Weight of the distance in the loss."""
    min_scale: Annotated[float | None, arg(name="view.min-scale")] = None
    """Smallest crop, fraction of the image's area, in (0, 1]."""
    warmup_epochs: Annotated[float | None, arg(name="schedule.warmup-epochs")] = None
    """Epochs of linear warm-up before the cosine."""
    amp: Amp | None = None
    """Number format of forward passes: none (float32), bf16, fp16 with a scaled loss, or auto as for the presets."""
    cache_views: Annotated[int | None, arg(name="cache.views")] = None
    """Views per image whose teacher outputs are stored on disk; 0: no cache."""
    held_out: Annotated[float | None, arg(name="monitor.held-out")] = None
    """Fraction of the images, at most 512 of them, that is not trained on but measures the students; 0: none."""
    every: Annotated[int | None, arg(name="monitor.every")] = None
    """Epochs between two measurements."""
    patience: Annotated[int | None, arg(name="monitor.patience")] = None
    """Stop after this many measurements without a better one; 0: never."""
    workers: Workers | None = None
    """Processes that decode images, for each training process; 0: that process does."""
    seed: int = 0
    """Seed of initial weights, held-out images, image order and views."""
    device: DeviceName = "auto"
    """auto: a CUDA GPU, else an Apple GPU, else the CPU."""
    on_broken: OnBroken = "refuse"
    """refuse: an unreadable image stops the run; skip: it is left out, named and counted."""
    data_licence: str | None = None
    """Licence of the images; a restricted one is recorded in the student's manifest."""
    if_exists: IfExists = "refuse"
    """refuse: OUT must not exist. resume: a run in it goes on with the settings that were chosen when it began."""


def preflight_auto(config: AutoConfig, has_knn: bool) -> None:
    """Refuse bad settings and missing paths before images and nets are read; see `preflight`."""
    if config.hours is not None:
        above(config, 0, "hours")
    if config.min_scale is not None:
        within(config, 0, 1, "min_scale", ends="(]", prefix="view.")
    run = DistillConfig(
        teacher=Teachers(
            name=config.teacher, **given(size=None if config.teacher_size is None else (config.teacher_size,))
        ),
        student=Students(
            name=config.student, **given(size=None if config.student_size is None else (config.student_size,))
        ),
        data=config.data,
        out=config.out,
        schedule=Cosine(**given(warmup_epochs=config.warmup_epochs)),
        cache=Cache(**given(views=config.cache_views)),
        monitor=Monitor(
            knn=config.knn, **given(held_out=config.held_out, every=config.every, patience=config.patience)
        ),
        seed=config.seed,
        if_exists=config.if_exists,
        **given(
            batch_size=config.batch_size,
            epochs=config.epochs,
            lr=config.lr,
            loss_weight=config.loss_weight,
            workers=config.workers,
        ),
    )
    preflight(run, has_knn)


def refuse_other_flags(config: AutoConfig) -> None:
    """Refuse, by a ValueError, flags that differ from the settings of the run that exists."""
    run = config_from_json(read_config(config.out), DistillConfig, UNIONS)
    monitor, teacher, student = run.monitor, run.teacher, run.student
    settings: dict[str, tuple[Any, Any]] = {
        "method": (AUTO + config.method, run.method),
        "teacher": (config.teacher, teacher.name),
        "student": (config.student, student.name),
        "teacher.size": (config.teacher_size and (config.teacher_size,), teacher.size),
        "student.size": (config.student_size and (config.student_size,), student.size),
        "view.min-scale": (config.min_scale, getattr(run.view, "min_scale", None)),
        "schedule.warmup-epochs": (config.warmup_epochs, run.schedule.warmup_epochs),
        "cache.views": (config.cache_views, run.cache.views),
        "monitor.knn": (config.knn, monitor.knn),
        "monitor.held-out": (config.held_out, monitor.held_out),
        "monitor.every": (config.every, monitor.every),
        "monitor.patience": (config.patience, monitor.patience),
        "amp": (None if config.amp == "auto" else config.amp, run.amp),
    }
    same = ("data", "columns", "batch_size", "epochs", "lr", "loss_weight", "seed", "on_broken", "data_licence")
    settings |= {name.replace("_", "-"): (getattr(config, name), getattr(run, name)) for name in same}
    if differ := sorted(name for name, (flag, its) in settings.items() if flag is not None and flag != its):
        raise ValueError(f"{config.out} is a run with other settings ({', '.join(differ)}): choose another --out")


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None: flags that were passed."""
    return {name: value for name, value in values.items() if value is not None}
