"""What a distillation run is. The words under each field are its `--help`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from tyro.conf import arg  # so that the net's name is `--teacher`, not `--teacher.name`; nothing else of tyro is here

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
    KlDivergence,
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

ChannelOrder = Literal["own", "rgb", "bgr"]
Output = Literal["feature", "class", "patches", "class+patches", "projection", "logits"]
"""What of a teacher is regressed: its pooled feature; a ViT's class token, mean patch token, or both side by side; the
output of the projection head, or of the classifier, that its checkpoint keeps."""


# --- nets -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Net:
    """One net and how it is fed."""

    name: Annotated[str, arg(name="", metavar="NAME|DIR")]
    """Backbone name or checkpoint directory. A teacher's name means its pretrained weights, a student's name random
    ones; random:NAME is always random."""
    feature: FeaturePoint = "before"
    """Read the pooled feature before or after the last activation."""
    output: Output = "feature"
    """What of a teacher is regressed."""
    size: int | None = None
    """Input side, pixels; None as the net's specification says."""
    crop_fraction: float | None = None
    """Crop over resized side in evaluation, (0, 1]; None as the net's specification says."""
    channel_order: ChannelOrder = "own"
    """The order of the colour channels; own: as the net's specification says."""
    weight: float = 1.0
    """Of a teacher's loss among several."""


@dataclass(frozen=True, kw_only=True)
class Students:
    """The nets to train; several share each pass of the teachers. Flags take one value for all of them, or one each."""

    name: Annotated[tuple[str, ...], arg(name="", metavar="NAME|DIR")]
    """Backbone names (random weights) or checkpoint directories to start from."""
    feature: tuple[FeaturePoint, ...] = ("before",)
    """Read the pooled feature before or after the last activation."""
    size: tuple[int, ...] = ()
    """Input side, pixels; none as the net's specification says."""
    crop_fraction: tuple[float, ...] = ()
    """Crop over resized side in evaluation, (0, 1]; none as the net's specification says."""

    def each(self) -> list[Net]:
        """The nets, one by one.

        Raises:
            ValueError: a flag with another number of values than one or the number of nets.
        """
        many = len(self.name)
        feature = spread(self.feature, many, "--student.feature")
        size = spread(self.size or (None,), many, "--student.size")
        crop = spread(self.crop_fraction or (None,), many, "--student.crop-fraction")
        return [
            Net(name=n, feature=f, size=s, crop_fraction=c)
            for n, f, s, c in zip(self.name, feature, size, crop, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Teachers:
    """The frozen nets. Flags take one value for all of them, or one each."""

    name: Annotated[tuple[str, ...], arg(name="", metavar="NAME|DIR")]
    """Checkpoint directories, or backbone names with their pretrained weights; random:NAME is random."""
    feature: tuple[FeaturePoint, ...] = ("before",)
    """Read the pooled feature before or after the last activation."""
    output: tuple[Output, ...] = ("feature",)
    """The pooled feature; a ViT's class token, mean patch token or both; the output of a kept projection head or of
    the classifier."""
    size: tuple[int, ...] = ()
    """Input side, pixels; none as the net's specification says."""
    crop_fraction: tuple[float, ...] = ()
    """Crop over resized side in evaluation, (0, 1]; none as the net's specification says."""
    channel_order: tuple[ChannelOrder, ...] = ("own",)
    """The order of the colour channels; own: as the net's specification says. KDEP's code feeds rgb to every net."""
    weight: tuple[float, ...] = (1.0,)
    """Of each teacher's loss; the losses are averaged with these weights."""

    def each(self) -> list[Net]:
        """The nets, one by one.

        Raises:
            ValueError: a flag with another number of values than one or the number of nets.
        """
        many = len(self.name)
        feature = spread(self.feature, many, "--teacher.feature")
        output = spread(self.output, many, "--teacher.output")
        size = spread(self.size or (None,), many, "--teacher.size")
        crop = spread(self.crop_fraction or (None,), many, "--teacher.crop-fraction")
        order = spread(self.channel_order, many, "--teacher.channel-order")
        weight = spread(self.weight, many, "--teacher.weight")
        return [
            Net(name=n, feature=f, output=o, size=s, crop_fraction=c, channel_order=r, weight=w)
            for n, f, o, s, c, r, w in zip(self.name, feature, output, size, crop, order, weight, strict=True)
        ]


def spread(values: tuple[T, ...], many: int, flag: str) -> tuple[T, ...]:
    """One value for all, or one each."""
    if len(values) not in (1, many):
        raise ValueError(f"{flag} has {len(values)} values for {many} nets: give one for all of them, or one each")
    return values * many if len(values) == 1 else values


# --- beside the four slots --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A term on feature maps, for students bound for segmentation and detection."""

    weight: float = 0.0
    """Times 2 - 2 cos of the student's map, projected by a 1x1 convolution, to the teacher's, both on the coarser
    grid of the two; 0: none."""
    student_level: int = -1
    """Which of the student's levels, -1: the last."""
    teacher_level: int = -1
    """Which of the teacher's levels."""


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Teacher outputs kept on disk, each for one exact view, and reused by every later epoch and student."""

    views: int = 0
    """Views of each image, which the epochs go through in turn; 0: no cache, every epoch draws new views. With
    teacher-view:fixed-view any number means the one fixed view, and the student's views stay new."""
    keep: Literal["smaller", "outputs"] = "smaller"
    """What is stored: the aligned target where that is smaller, for students with the same alignment; or always the
    teacher's outputs, for any student."""
    dtype: Literal["float16", "float32"] = "float16"


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """What is watched while a student trains."""

    knn: Path | None = None
    """Labelled image folder (with train/ and val/ in it, or split here): k-NN accuracy of the student."""
    every: int = 5
    """Epochs between two measurements."""
    held_out: float = 0.02
    """Share of the images, at most 512, that is not trained on but shows the distance to the target; 0: none."""
    patience: int = 0
    """Stop after this many measurements without a better one; 0: never."""
    hours: float | None = None
    """Stop after this long, hours of training over all lives of the run; None: never."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """One run: views, alignment, head and distance between frozen teachers and the students they teach."""

    teacher: Teachers
    student: Students
    data: Path
    """Folder of images, labels not needed, subfolders are read too; or a file list, one path per line."""
    out: Path
    """Run directory to make."""
    method: str = "kdep"
    """What the student's checkpoint says it was made by; a preset's name."""
    view: View = field(default_factory=KdepView)
    teacher_view: TeacherView = field(default_factory=SameView)
    alignment: Alignment = field(default_factory=SvdPts)
    alignment_file: tuple[Path, ...] = ()
    """Use these alignments (from fit-alignment or import-alignment), one per teacher, instead of fitting them."""
    alignment_view: Literal["evaluation", "training"] = "evaluation"
    """Fit the alignment on the evaluation view of the images, or on the first epoch's random views, as KDEP did."""
    head: HeadConfig = field(default_factory=NoHead)
    keep_head: bool = False
    """Store the trained heads beside the student, in heads.safetensors."""
    distance: Distance = field(default_factory=Mse)
    dense: Dense = field(default_factory=Dense)
    epochs: int = 90
    """Passes over the data."""
    batch_size: int = 512
    """Images per step, over all processes."""
    lr: float = 0.3
    """Base learning rate."""
    weight_decay: float = 5e-4
    """On every parameter; with LARS not on biases and norms."""
    optimizer: Optimizer = field(default_factory=Sgd)
    schedule: Schedule = field(default_factory=Step)
    loss_weight: float = 3.0
    """Times the distance."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then what leaves; 0: none."""
    amp: Literal["none", "bf16"] = "none"
    """bf16: forward passes in bfloat16 autocast."""
    compile: bool = False
    """torch.compile all nets."""
    sync_batch_norm: bool = False
    """Share batch statistics over processes (GPUs only)."""
    cache: Cache = field(default_factory=Cache)
    monitor: Monitor = field(default_factory=Monitor)
    seed: int = 0
    device: DeviceName = "auto"
    workers: int = 1
    """Processes that decode images."""
    log_every: int = 50
    """Steps between two lines of metrics.jsonl."""
    save_every: int = 200
    """Steps between two states to resume from."""
    on_broken: OnBroken = "refuse"
    """An image that cannot be read stops the run, or is skipped, named and counted."""
    data_licence: str | None = None
    """Licence of the images; a restricted one goes into the student's manifest."""


@dataclass(frozen=True, kw_only=True)
class AutoConfig:
    """A KDEP or SimReg run whose settings are chosen from the images, the nets and the device.

    docs/recipes.md states the table and the study behind each line. What is chosen is printed with its reason and
    written into config.json; a flag that is given takes its place. Everything else is a flag of `kdep` and `simreg`.
    """

    teacher: Annotated[tuple[str, ...], arg(metavar="NAME|DIR")]
    """Checkpoint directories, or backbone names with their pretrained weights."""
    student: Annotated[tuple[str, ...], arg(metavar="NAME|DIR")]
    """Backbone names (random weights) or checkpoint directories to start from."""
    data: Path
    """Folder of images, labels not needed, subfolders are read too; or a file list, one path per line."""
    out: Path
    """Run directory to make."""
    method: Literal["kdep", "simreg"] = "kdep"
    """Whose target, head and distance."""
    hours: float | None = None
    """Train for this long at most; None: as long as the table says."""
    knn: Annotated[Path | None, arg(name="monitor.knn")] = None
    """Labelled image folder: its k-NN accuracy picks the best student and says when to stop, in place of the agreement
    with the teacher on held-out images."""
    teacher_size: Annotated[int | None, arg(name="teacher.size")] = None
    """Input side of the teachers, pixels; None as each net's specification says."""
    student_size: Annotated[int | None, arg(name="student.size")] = None
    """Input side of the students, pixels; None as each net's specification says."""
    batch_size: int | None = None
    """Images per step, over all processes; None: chosen, like all below."""
    epochs: int | None = None
    """Passes over the data."""
    lr: float | None = None
    """Base learning rate."""
    loss_weight: float | None = None
    """Times the distance."""
    min_scale: Annotated[float | None, arg(name="view.min-scale")] = None
    """Smallest crop, fraction of the image's area."""
    warmup_epochs: Annotated[float | None, arg(name="schedule.warmup-epochs")] = None
    """Epochs of linear warm-up before the cosine."""
    amp: Literal["none", "bf16"] | None = None
    """bf16: forward passes in bfloat16 autocast."""
    cache_views: Annotated[int | None, arg(name="cache.views")] = None
    """Views of each image whose teacher outputs are kept on disk; 0: no cache."""
    workers: int | None = None
    """Processes that decode images."""
    seed: int = 0
    device: DeviceName = "auto"
    on_broken: OnBroken = "refuse"
    """An image that cannot be read stops the run, or is skipped, named and counted."""
    data_licence: str | None = None
    """Licence of the images; a restricted one goes into the student's manifest."""


def preflight(config: DistillConfig, has_knn: bool) -> None:
    """Refuse what needs no torch to be refused, before a command imports it: flags, and paths that are not there.

    Raises:
        ValueError: in the sentence that the run would end with.
    """
    check_settings(config, has_knn)
    refuse_taken(config.out, alone=True)
    refuse_missing_images(config.data)
    for name in (*config.teacher.name, *config.student.name):
        refuse_missing_checkpoint(name)
    if config.monitor.knn is not None:
        refuse_missing_folder(config.monitor.knn)


def preflight_auto(config: AutoConfig, has_knn: bool) -> None:
    """Refuse what needs no torch to be refused, before the images and the nets are looked at; see `preflight`."""
    if config.hours is not None and not config.hours > 0:
        raise ValueError(f"--hours is {config.hours}: it must be above 0")
    teacher, student = Teachers(name=config.teacher), Students(name=config.student)
    monitor = Monitor(knn=config.knn)
    preflight(
        DistillConfig(teacher=teacher, student=student, data=config.data, out=config.out, monitor=monitor), has_knn
    )


def check_settings(config: DistillConfig, has_knn: bool) -> None:
    """Refuse settings that cannot work, whatever the images, the nets and the device are.

    Raises:
        ValueError: in one sentence.
    """
    for name in ("epochs", "batch_size", "log_every", "save_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)}: it must be at least 1")
    if config.monitor.every < 1:
        raise ValueError(f"--monitor.every is {config.monitor.every}: it must be at least 1")
    if not 0 <= config.ema < 1:
        raise ValueError(f"--ema is {config.ema}: a decay lies in [0, 1)")
    if config.monitor.knn is not None and not has_knn:
        raise ValueError(
            "--monitor.knn needs stillroom-eval-ssl: run tools/distill.py with it installed, or pass knn= to distill()"
        )
    if config.monitor.hours is not None and not config.monitor.hours > 0:
        raise ValueError(f"--monitor.hours is {config.monitor.hours}: it must be above 0")
    if config.cache.views and config.dense.weight:
        raise ValueError("the dense term needs the teacher's maps, which are not cached: leave out --cache.views")
    if config.dense.weight and not isinstance(config.teacher_view, SameView):
        raise ValueError("the dense term compares places: it needs teacher-view:same-view")
    for view in (config.view, config.teacher_view):
        if not isinstance(view, SameView | FixedView) and not 0 < view.min_scale <= 1:
            raise ValueError(f"the smallest crop of a view is {view.min_scale}: it must lie in (0, 1]")
    if isinstance(config.distance, KlDivergence) and config.distance.temperature <= 0:
        raise ValueError(f"--distance.temperature is {config.distance.temperature}: it must be above 0")
    if config.cache.views < 0:
        raise ValueError(f"--cache.views is {config.cache.views}: it must be 0 or more")


UNIONS = (Alignment, Schedule, HeadConfig, Distance, Optimizer, View, TeacherView)
"""The fields of several variants, for config.json."""

__all__ = ["UNIONS", "AutoConfig", "Cosine", "DistillConfig", "Step"]
