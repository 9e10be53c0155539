"""Settings of a distillation run. The docstring under each field is its `--help`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stillroom.backbone.atomic import refuse_missing
from stillroom.backbone.checks import above, at_least, within
from stillroom.backbone.flags import Amp, DeviceName, IfExists, OnBroken, Workers
from stillroom.backbone.names import refuse_missing_checkpoint
from stillroom.distill.nets import Students, Teachers
from stillroom.distill.slots import (
    Alignment,
    Distance,
    FixedView,
    HeadConfig,
    KdepView,
    Mse,
    NoHead,
    Optimizer,
    SameView,
    Sgd,
    SvdPts,
    TeacherView,
    View,
)
from stillroom.images.files import refuse_missing_folder, refuse_missing_images
from stillroom.images.labels import USUAL, Columns
from stillroom.runs.configs import ABSENT
from stillroom.runs.schedule import Schedule, Step
from stillroom.runs.sweep import refuse_taken


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Loss term on feature maps, for students to be fine-tuned on segmentation and detection."""

    weight: float = 0.0
    """Weight of 2 - 2 cos between the student's map, projected by a 1x1 convolution, and the teacher's, both averaged
    onto the coarser grid of the two; 0: no such term."""
    student_level: int = -1
    """Index of the student's level, from 0; -1: the last one."""
    teacher_level: int = -1
    """Index of the teacher's level, from 0; -1: the last one."""


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Teacher outputs stored on disk, one per image and view, and reused by later epochs and runs."""

    views: int = 0
    """Views per image; the epochs cycle through them. 0: no cache, every epoch draws new views. With
    teacher-view:fixed-view any number stores the one fixed view, and the student's views stay new."""
    keep: Literal["smaller", "outputs"] = "smaller"
    """smaller: store the aligned target where it is smaller than the output, for students with the same alignment;
    outputs: always store the teacher's outputs, for any student."""
    dtype: Literal["float16", "float32"] = "float16"
    """Number format of the stored values."""
    features: Path | None = None
    """Fill the cache from this file (SimReg's --teacher_feats: a torch file of image file name -> vector), not by the
    teacher; needs --cache.views 1, teacher-view:fixed-view and one teacher. None: the teacher fills it."""

    def __post_init__(self) -> None:
        at_least(self, 0, "views", prefix="cache.")


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """How the students are measured during training, and when a run stops early."""

    knn: Path | None = None
    """Labelled image folder (with train/ and val/ in it, or split here): measure the students' k-NN accuracy on it."""
    every: int = 5
    """Epochs between two measurements."""
    held_out: float = 0.02
    """Fraction of the images, at most 512 of them, that is not trained on but measures the students; 0: none."""
    patience: int = 0
    """Stop after this many measurements without a better one; 0: never."""
    hours: float | None = None
    """Stop after this many hours of training, those before a resume included; None: never."""

    def __post_init__(self) -> None:
        at_least(self, 1, "every", prefix="monitor.")
        at_least(self, 0, "patience", prefix="monitor.")
        within(self, 0, 0.5, "held_out", prefix="monitor.")
        if self.hours is not None:
            above(self, 0, "hours", prefix="monitor.")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """One run: frozen teachers, students, and the view, alignment, head and distance between them."""

    teacher: Teachers
    student: Students
    data: Path
    """Images, labels not needed: a folder, searched with its subfolders, a text file with one path per line, a table of
    paths (.csv, .parquet), tar shards, a .zip file or a saved data set; or an address of one, s3://bucket/folder."""
    out: Path
    """Run directory to create."""
    columns: Columns = USUAL
    method: str = "kdep"
    """Name of the method, recorded in the student's checkpoint; by default the preset's name."""
    view: View = field(default_factory=KdepView)
    teacher_view: TeacherView = field(default_factory=SameView)
    alignment: Alignment = field(default_factory=SvdPts)
    alignment_file: tuple[Path, ...] = ()
    """Use these alignments (from fit-alignment or import-alignment), one per teacher, instead of fitting them."""
    alignment_view: Literal["evaluation", "training"] = "evaluation"
    """Fit the alignment on the evaluation view of the images, or on the first epoch's random views, as KDEP did."""
    head: HeadConfig = field(default_factory=NoHead)
    keep_head: bool = False
    """Save the trained heads beside the student, in heads.safetensors."""
    keep_every: int = 0
    """Also keep the student of every Nth epoch, as the checkpoint OUT/student@EPOCH; 0: of none."""
    distance: Distance = field(default_factory=Mse)
    dense: Dense = field(default_factory=Dense)
    epochs: int = 90
    """Passes over the images."""
    batch_size: int = 512
    """Images per step, over all processes; under 32 for each device there is a warning."""
    lr: float = 0.3
    """Base learning rate."""
    weight_decay: float = 5e-4
    """Weight decay of every parameter; with LARS, biases and norms have none."""
    optimizer: Optimizer = field(default_factory=Sgd)
    schedule: Schedule = field(default_factory=Step)
    loss_weight: float = 3.0
    """Weight of the distance in the loss."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then what is measured and saved;
    0: none."""
    alignment_images: int = 500_000
    """Images that an alignment is fitted on at most: a draw by --seed; of fewer images, all."""
    amp: Amp = "auto"
    """Number format of forward passes. auto: bf16 on a GPU that has it, fp16 with a scaled loss on an older one, none
    (float32) on a CPU, where runs are reproducible to the bit; bf16 on a CPU is fast if it has AVX-512 BF16 or AMX."""
    compile: bool = False
    """Compile all nets with torch.compile after 8 steps, and print after 18 how much faster a step has become."""
    shard_teacher: bool = False
    """Divide each teacher's weights over the processes (FSDP2), for teachers that are larger than a device. Each of
    their forward passes then gathers them, part by part."""
    sync_batch_norm: bool = False
    """Compute batch-norm statistics over all processes (GPUs only)."""
    cache: Cache = field(default_factory=Cache)
    monitor: Monitor = field(default_factory=Monitor)
    seed: int = 0
    """Seed of initial weights, held-out images, image order and views."""
    order: Literal[1, 2] = field(default=2, metadata={ABSENT: 1})
    """Version of the order of the images in an epoch. 2: a keyed bijection, of which each step computes its part. 1: an
    array of all images, as in runs of versions before 0.6, which keep it when they are resumed."""
    device: DeviceName = "auto"
    """auto: a CUDA GPU, else an Apple GPU, else the CPU."""
    workers: Workers = "auto"
    """Processes that decode images, for each training process; 0: that process does. auto: one for each of its cores,
    on a machine without a GPU one less."""
    log_every: int = 50
    """Steps between two lines of metrics.jsonl."""
    save_every: int | None = None
    """Steps between two saved states to resume from, beside those by the clock; None: by the clock alone."""
    save_minutes: float = 10.0
    """Minutes between two saved states; 0: by --save-every alone. The last two are kept, each with its hash."""
    if_exists: IfExists = "refuse"
    """refuse: OUT must not exist. resume: a run in it is resumed, or kept if it is finished; start everything that
    nobody watches this way, so that the same command goes on after a restart."""
    on_broken: OnBroken = "refuse"
    """refuse: an unreadable image stops the run; skip: it is left out, named and counted."""
    data_licence: str | None = None
    """Licence of the images; a restricted one is recorded in the student's manifest."""

    @property
    def as_stored(self) -> bool:
        """Whether images are read as they are stored, as released code did, not turned as their EXIF tags say."""
        return self.method.startswith("legacy-")

    def __post_init__(self) -> None:
        self.view.check("view.")
        if not isinstance(self.teacher_view, SameView | FixedView):
            self.teacher_view.check("teacher-view.")


def preflight(config: DistillConfig, has_knn: bool) -> None:
    """Refuse bad settings and missing paths before a command imports torch.

    Args:
        config: the run.
        has_knn: whether the caller can measure k-NN accuracy.

    Raises:
        ValueError: with the sentence that the run itself would end with.
    """
    check_settings(config, has_knn)
    refuse_taken(config.out, alone=True, if_exists=config.if_exists)
    refuse_missing_images(config.data)
    for name in (*config.teacher.name, *config.student.name):
        refuse_missing_checkpoint(name)
    if config.monitor.knn is not None:
        refuse_missing_folder(config.monitor.knn)


def check_settings(config: DistillConfig, has_knn: bool) -> None:
    """Refuse settings that cannot work with any images, nets or device. Each slot's variant checks its own fields.

    Raises:
        ValueError: with the first problem, in one sentence.
    """
    at_least(config, 1, "epochs", "batch_size", "log_every", "save_every", "alignment_images")
    at_least(config, 0, "lr", "loss_weight", "weight_decay", "workers", "seed", "keep_every", "save_minutes")
    at_least(config.dense, 0, "weight", prefix="dense.")
    within(config, 0, 1, "ema", ends="[)")
    if config.keep_every > config.epochs:
        raise ValueError(f"--keep-every is {config.keep_every}: of {config.epochs} epochs none would be kept")
    if config.monitor.knn is not None and not has_knn:
        raise ValueError(
            "--monitor.knn needs stillroom-eval-ssl: run tools/distill.py with it installed, or pass knn= to distill()"
        )
    if config.cache.features is not None:
        refuse_missing(config.cache.features)
        if not config.cache.views or not isinstance(config.teacher_view, FixedView) or len(config.teacher.name) > 1:
            raise ValueError(
                f"--cache.features {config.cache.features} holds one vector per image, of one teacher: pass "
                f"--cache.views 1, teacher-view:fixed-view and one --teacher"
            )
    if config.shard_teacher and (config.compile or config.cache.features is not None):
        flag = "--compile" if config.compile else "--cache.features"
        raise ValueError(f"{flag} needs a teacher whose weights are whole: leave it out, or --shard-teacher")
    if config.cache.views and config.dense.weight:
        raise ValueError("the dense term needs the teacher's maps, which are not cached: leave out --cache.views")
    if config.dense.weight and not isinstance(config.teacher_view, SameView):
        raise ValueError("the dense term compares positions of the image: it needs teacher-view:same-view")


UNIONS = (Alignment, Schedule, HeadConfig, Distance, Optimizer, View, TeacherView)
"""The union types of a config's fields; config.json names each variant by its `kind`."""
