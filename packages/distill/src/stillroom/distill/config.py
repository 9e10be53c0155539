"""Settings of a distillation run. The docstring under each field is its `--help`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from tyro.conf import arg  # names flags: `--teacher`, not `--teacher.name`; nothing else of tyro is imported here

from stillroom.backbone.checks import above, at_least, within
from stillroom.backbone.flags import DeviceName, OnBroken
from stillroom.backbone.image_files import refuse_missing_folder, refuse_missing_images
from stillroom.backbone.names import refuse_missing_checkpoint
from stillroom.backbone.schedule import Cosine, Schedule, Step
from stillroom.backbone.spec import FeaturePoint
from stillroom.backbone.sweep import refuse_taken
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

T = TypeVar("T")

AUTO = "auto-"
"""Prefix of the method of runs that `auto` makes: `auto-kdep`, `auto-simreg`."""
ChannelOrder = Literal["own", "rgb", "bgr"]
Output = Literal["feature", "class", "patches", "class+patches", "projection", "logits"]
"""Which output of a teacher the student regresses: the pooled feature; a ViT's class token, its mean patch token, or
both concatenated; the output of the projection head or of the classifier in its checkpoint."""


# --- nets -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Net:
    """One net, which feature is read from it, and its input."""

    name: Annotated[str, arg(name="", metavar="NAME|DIR")]
    """Backbone name or checkpoint directory. A teacher's name means its pretrained weights, a student's name random
    weights; random:NAME always means random weights."""
    feature: FeaturePoint = "before"
    """Read the pooled feature before or after the last activation."""
    output: Output = "feature"
    """Which output of a teacher the student regresses."""
    size: int | None = None
    """Input side in pixels; None: that of the net's specification."""
    crop_fraction: float | None = None
    """Evaluation crop over resized side, in (0, 1]; None: that of the net's specification."""
    channel_order: ChannelOrder = "own"
    """Order of the colour channels; own: that of the net's specification."""
    weight: float = 1.0
    """Weight of this teacher's loss."""

    def __post_init__(self) -> None:
        if self.size is not None:
            at_least(self, 1, "size", prefix="teacher.")
        if self.crop_fraction is not None:
            within(self, 0, 1, "crop_fraction", ends="(]", prefix="teacher.")


@dataclass(frozen=True, kw_only=True)
class Students:
    """The nets to train; several share each forward pass of the teachers. Flags take one value for all, or one each."""

    name: Annotated[tuple[str, ...], arg(name="", metavar="NAME|DIR")]
    """Backbone names (random initial weights) or checkpoint directories (their weights)."""
    feature: tuple[FeaturePoint, ...] = ("before",)
    """Read the pooled feature before or after the last activation."""
    size: tuple[int, ...] = ()
    """Input side in pixels; empty: that of each net's specification."""
    crop_fraction: tuple[float, ...] = ()
    """Evaluation crop over resized side, in (0, 1]; empty: that of each net's specification."""

    def __post_init__(self) -> None:
        check_inputs(self, "student.")

    def nets(self) -> list[Net]:
        """Each net with its settings.

        Raises:
            ValueError: a flag with neither one value nor one per net.
        """
        num_nets = len(self.name)
        feature = one_per_net(self.feature, num_nets, "--student.feature")
        size = one_per_net(self.size or (None,), num_nets, "--student.size")
        crop = one_per_net(self.crop_fraction or (None,), num_nets, "--student.crop-fraction")
        return [
            Net(name=n, feature=f, size=s, crop_fraction=c)
            for n, f, s, c in zip(self.name, feature, size, crop, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Teachers:
    """The frozen nets. Flags take one value for all of them, or one each."""

    name: Annotated[tuple[str, ...], arg(name="", metavar="NAME|DIR")]
    """Checkpoint directories, or backbone names (pretrained weights); random:NAME has random weights."""
    feature: tuple[FeaturePoint, ...] = ("before",)
    """Read the pooled feature before or after the last activation."""
    output: tuple[Output, ...] = ("feature",)
    """What the student regresses: the pooled feature; a ViT's class token, its mean patch token, or both concatenated;
    the output of the projection head or of the classifier in the checkpoint."""
    size: tuple[int, ...] = ()
    """Input side in pixels; empty: that of each net's specification."""
    crop_fraction: tuple[float, ...] = ()
    """Evaluation crop over resized side, in (0, 1]; empty: that of each net's specification."""
    channel_order: tuple[ChannelOrder, ...] = ("own",)
    """Order of the colour channels; own: that of the net's specification. KDEP's code feeds rgb to every net."""
    weight: tuple[float, ...] = (1.0,)
    """Weight of each teacher's loss; only their ratios matter."""

    def __post_init__(self) -> None:
        check_inputs(self, "teacher.")
        if self.weight and (min(self.weight) < 0 or sum(self.weight) <= 0):
            raise ValueError(f"--teacher.weight is {self.weight}: weights must not be negative, nor all zero")

    def nets(self) -> list[Net]:
        """Each net with its settings.

        Raises:
            ValueError: a flag with neither one value nor one per net.
        """
        num_nets = len(self.name)
        feature = one_per_net(self.feature, num_nets, "--teacher.feature")
        output = one_per_net(self.output, num_nets, "--teacher.output")
        size = one_per_net(self.size or (None,), num_nets, "--teacher.size")
        crop = one_per_net(self.crop_fraction or (None,), num_nets, "--teacher.crop-fraction")
        order = one_per_net(self.channel_order, num_nets, "--teacher.channel-order")
        weight = one_per_net(self.weight, num_nets, "--teacher.weight")
        return [
            Net(name=n, feature=f, output=o, size=s, crop_fraction=c, channel_order=r, weight=w)
            for n, f, o, s, c, r, w in zip(self.name, feature, output, size, crop, order, weight, strict=True)
        ]

    def normalised_weights(self) -> list[float]:
        """The weight of each teacher's loss, scaled so that they sum to 1."""
        weights = [net.weight for net in self.nets()]
        return [weight / sum(weights) for weight in weights]


def check_inputs(nets: "Students | Teachers", prefix: str) -> None:
    """Refuse input sizes below 1 pixel and crops outside (0, 1], by a ValueError."""
    at_least(nets, 1, "size", prefix=prefix)
    within(nets, 0, 1, "crop_fraction", ends="(]", prefix=prefix)


def one_per_net(values: tuple[T, ...], num_nets: int, flag: str) -> tuple[T, ...]:
    """Repeat a single value for every net; as many values as nets are returned unchanged.

    Raises:
        ValueError: any other number of values.
    """
    if len(values) not in (1, num_nets):
        raise ValueError(f"{flag} has {len(values)} values for {num_nets} nets: pass one for all of them, or one each")
    return values * num_nets if len(values) == 1 else values


# --- parts of a run's config ------------------------------------------------------------------------------------------


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
    """Folder of images, searched recursively, labels not needed; or a text file with one image path per line."""
    out: Path
    """Run directory to create."""
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
    distance: Distance = field(default_factory=Mse)
    dense: Dense = field(default_factory=Dense)
    epochs: int = 90
    """Passes over the images."""
    batch_size: int = 512
    """Images per step, over all processes."""
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
    amp: Literal["none", "bf16"] = "none"
    """bf16: run forward passes in bfloat16 autocast."""
    compile: bool = False
    """Compile all nets with torch.compile."""
    sync_batch_norm: bool = False
    """Compute batch-norm statistics over all processes (GPUs only)."""
    cache: Cache = field(default_factory=Cache)
    monitor: Monitor = field(default_factory=Monitor)
    seed: int = 0
    """Seed of initial weights, held-out images, image order and views."""
    device: DeviceName = "auto"
    """auto: a CUDA GPU, else an Apple GPU, else the CPU."""
    workers: int = 1
    """Processes that decode images; 0: the training process does."""
    log_every: int = 50
    """Steps between two lines of metrics.jsonl."""
    save_every: int = 200
    """Steps between two saved states to resume from."""
    on_broken: OnBroken = "refuse"
    """refuse: an unreadable image stops the run; skip: it is left out, named and counted."""
    data_licence: str | None = None
    """Licence of the images; a restricted one is recorded in the student's manifest."""

    def __post_init__(self) -> None:
        self.view.check("view.")
        if not isinstance(self.teacher_view, SameView | FixedView):
            self.teacher_view.check("teacher-view.")


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
    """Folder of images, searched recursively, labels not needed; or a text file with one image path per line."""
    out: Path
    """Run directory to create."""
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
    amp: Literal["none", "bf16"] | None = None
    """bf16: run forward passes in bfloat16 autocast."""
    cache_views: Annotated[int | None, arg(name="cache.views")] = None
    """Views per image whose teacher outputs are stored on disk; 0: no cache."""
    held_out: Annotated[float | None, arg(name="monitor.held-out")] = None
    """Fraction of the images, at most 512 of them, that is not trained on but measures the students; 0: none."""
    every: Annotated[int | None, arg(name="monitor.every")] = None
    """Epochs between two measurements."""
    patience: Annotated[int | None, arg(name="monitor.patience")] = None
    """Stop after this many measurements without a better one; 0: never."""
    workers: int | None = None
    """Processes that decode images; 0: the training process does."""
    seed: int = 0
    """Seed of initial weights, held-out images, image order and views."""
    device: DeviceName = "auto"
    """auto: a CUDA GPU, else an Apple GPU, else the CPU."""
    on_broken: OnBroken = "refuse"
    """refuse: an unreadable image stops the run; skip: it is left out, named and counted."""
    data_licence: str | None = None
    """Licence of the images; a restricted one is recorded in the student's manifest."""


def preflight(config: DistillConfig, has_knn: bool) -> None:
    """Refuse bad settings and missing paths before a command imports torch.

    Args:
        config: the run.
        has_knn: whether the caller can measure k-NN accuracy.

    Raises:
        ValueError: with the sentence that the run itself would end with.
    """
    check_settings(config, has_knn)
    refuse_taken(config.out, alone=True)
    refuse_missing_images(config.data)
    for name in (*config.teacher.name, *config.student.name):
        refuse_missing_checkpoint(name)
    if config.monitor.knn is not None:
        refuse_missing_folder(config.monitor.knn)


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
        **given(
            batch_size=config.batch_size,
            epochs=config.epochs,
            lr=config.lr,
            loss_weight=config.loss_weight,
            workers=config.workers,
        ),
    )
    preflight(run, has_knn)


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None: flags that were passed."""
    return {name: value for name, value in values.items() if value is not None}


def check_settings(config: DistillConfig, has_knn: bool) -> None:
    """Refuse settings that cannot work with any images, nets or device. Each slot's variant checks its own fields.

    Raises:
        ValueError: with the first problem, in one sentence.
    """
    at_least(config, 1, "epochs", "batch_size", "log_every", "save_every")
    at_least(config, 0, "lr", "loss_weight", "weight_decay", "workers", "seed")
    at_least(config.dense, 0, "weight", prefix="dense.")
    within(config, 0, 1, "ema", ends="[)")
    if config.monitor.knn is not None and not has_knn:
        raise ValueError(
            "--monitor.knn needs stillroom-eval-ssl: run tools/distill.py with it installed, or pass knn= to distill()"
        )
    if config.cache.views and config.dense.weight:
        raise ValueError("the dense term needs the teacher's maps, which are not cached: leave out --cache.views")
    if config.dense.weight and not isinstance(config.teacher_view, SameView):
        raise ValueError("the dense term compares positions of the image: it needs teacher-view:same-view")


UNIONS = (Alignment, Schedule, HeadConfig, Distance, Optimizer, View, TeacherView)
"""The union types of a config's fields; config.json names each variant by its `kind`."""

__all__ = ["UNIONS", "AutoConfig", "Cosine", "DistillConfig", "Step"]
