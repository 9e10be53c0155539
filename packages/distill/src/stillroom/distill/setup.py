"""Build what a run consists of: images, teachers, students with their heads, and the alignments between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from stillroom.backbone import Backbone, weights_sha256
from stillroom.backbone.atomic import write_file
from stillroom.backbone.names import is_checkpoint
from stillroom.distill.alignment import AlignedTarget
from stillroom.distill.alignment_file import AlignmentInputs, build_alignment, encode_alignments, load_alignments
from stillroom.distill.cache import CachePass, fill_cache
from stillroom.distill.config import DistillConfig, check_settings
from stillroom.distill.data import RunImages, check_knn_folder, draw_images, read_images
from stillroom.distill.factors import too_many_discriminants
from stillroom.distill.feature_file import file_sha256, read_feature_file
from stillroom.distill.fit import FitPass, RandomView, cached_alignment, load_matching_alignment
from stillroom.distill.slots import Lda, Mse
from stillroom.distill.student import StudentModel, build_student, build_student_backbone
from stillroom.distill.teacher import FrozenTeacher, Supervision, build_teachers
from stillroom.images import read_unlabelled
from stillroom.images.loaders import TrainingBatches
from stillroom.runs import Run
from stillroom.runs.hardware import choose_amp
from stillroom.runs.inputs import Input, data_inputs, names_input, refuse_changed_inputs, settings_input

ALIGNMENT = "alignment.safetensors"


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """What a run consists of before it writes anything.

    Args:
        run: this process.
        images: to train on, and held out.
        teachers: frozen, on the run's device.
        students: with their heads and initial weights, on the run's device.
    """

    run: Run
    images: RunImages
    teachers: list[FrozenTeacher]
    students: list[StudentModel]


def build_setup(config: DistillConfig, teacher: Backbone | Sequence[Backbone] | None, *, has_knn: bool) -> RunSetup:
    """Validate the settings, read the list of images and build the nets.

    Args:
        config: the run.
        teacher: nets of the user's, in place of those that `config.teacher` names.
        has_knn: whether the caller can measure k-NN accuracy.

    Raises:
        ValueError: settings that cannot work with these images and nets, or on this device.
    """
    check_settings(config, has_knn)
    run = Run.start(config.device)
    images = read_images(
        config.data,
        config.columns,
        held_out=config.monitor.held_out,
        seed=config.seed,
        labelled=is_fitted_on_labels(config),
    )
    check_run(config, run, images)
    backbones = [teacher] if isinstance(teacher, Backbone) else teacher
    built = build_teachers(config.teacher.nets(), backbones)
    teachers = [net.place(run, shard=config.shard_teacher) for net in built]
    if config.cache.features is not None and run.is_main:
        read_feature_file(config.cache.features, images.train, teachers[0].dim)  # here, for what it refuses
    students = build_students(config, run, images, teachers)
    return RunSetup(run=run, images=images, teachers=teachers, students=students)


def read_run_inputs(config: DistillConfig, setup: RunSetup) -> dict[str, Input]:
    """Everything that a run begins with, as it is now: see `stillroom.runs.inputs`.

    A student is hashed with its initial weights, and only where a checkpoint holds them: others follow from the seed.
    """
    inputs = data_inputs({"images": setup.images.all.record()})
    if setup.images.all.labels is not None:
        inputs["classes"] = names_input(setup.images.all.classes)
    if config.monitor.knn is not None:
        inputs |= data_inputs({"monitor.knn": read_unlabelled(config.monitor.knn).record()})
    for number, (name, teacher) in enumerate(zip(config.teacher.name, setup.teachers, strict=True), 1):
        inputs[f"teacher {number}"] = Input(f"the weights of teacher {name}", teacher.sha256)
        inputs[f"teacher {number} input"] = settings_input(teacher.backbone.spec, f"teacher {name}")
        if teacher.head_sha256 is not None:
            inputs[f"teacher {number} head"] = Input(f"the head of teacher {name}", teacher.head_sha256)
    for number, (name, student) in enumerate(zip(config.student.name, setup.students, strict=True), 1):
        if is_checkpoint(name):
            weights = weights_sha256(student.backbone.net)
            inputs[f"student {number}"] = Input(f"the initial weights of student {name}", weights)
            inputs[f"student {number} input"] = settings_input(student.backbone.spec, f"student {name}")
    for number, file in enumerate(config.alignment_file, 1):
        if file.exists():  # a run has its own copy
            content = sha256(file.read_bytes()).hexdigest()
            inputs[f"alignment file {number}"] = Input(f"the alignment file {file}", content)
    if config.cache.features is not None:
        file = config.cache.features
        inputs["cache.features"] = Input(f"the features in {file}", file_sha256(file))
    return inputs


def is_fitted_on_labels(config: DistillConfig) -> bool:
    """Whether the run fits an alignment on labelled images."""
    return isinstance(config.alignment, Lda) and not config.alignment_file


def check_run(config: DistillConfig, run: Run, images: RunImages) -> None:
    """Refuse settings that cannot work on this device or with these images.

    Raises:
        ValueError: with the first problem, in one sentence.
    """
    if config.sync_batch_norm and run.device.type != "cuda":
        raise ValueError("--sync-batch-norm works on GPUs only: leave it out on this device")
    if config.monitor.knn is not None:
        check_knn_folder(config.monitor.knn)
    if config.monitor.patience and images.held_out is None and config.monitor.knn is None:
        raise ValueError("--monitor.patience has no measurements: hold out more images, or pass --monitor.knn")
    if len(config.alignment_file) not in (0, len(config.teacher.name)):
        raise ValueError(
            f"{len(config.alignment_file)} alignment files for {len(config.teacher.name)} teachers: pass one for each"
        )
    TrainingBatches(len(images.train), config.batch_size, config.epochs, config.seed, run)  # refuses too large a batch


def build_students(
    config: DistillConfig, run: Run, images: RunImages, teachers: list[FrozenTeacher]
) -> list[StudentModel]:
    """Build the students with their heads; refuse widths and levels that do not match before anything is fitted.

    Raises:
        ValueError: see `build_alignment` and `build_student`; as many discriminants of LDA as classes, or more; one
            image per process where batch norm needs two.
    """
    students = []
    for net in config.student.nets():
        backbone = build_student_backbone(net, config.seed)
        dims = [build_alignment(config.alignment, teacher.dim, backbone.spec.dim).dim for teacher in teachers]
        if is_fitted_on_labels(config) and dims[0] >= len(images.all.classes):
            raise ValueError(too_many_discriminants(len(images.all.classes), dims[0]))
        student = build_student(backbone, teachers, dims, head=config.head, dense=config.dense, seed=config.seed)
        if config.batch_size == run.world_size and not config.sync_batch_norm and student.needs_two_images:
            raise ValueError(
                f"--batch-size {config.batch_size} leaves one image to a process, and the batch norm of "
                f"{net.name} or of its head needs two: pass at least {2 * run.world_size}"
            )
        students.append(student.to(run.device))
    return students


def build_supervisions(config: DistillConfig, setup: RunSetup) -> list[Supervision]:
    """Align each teacher with each student and store its outputs, where the config asks for a cache.

    Needs the run directory: the alignments are written there, and read from there when a run is resumed.
    """
    # Alignments, [student][teacher]; all of them before the first cache is filled.
    alignments = [
        student_alignments(config, setup.run, setup.images, setup.teachers, index, student.backbone.spec.dim)
        for index, student in enumerate(setup.students)
    ]
    supervisions = []
    weights = config.teacher.normalised_weights()
    for teacher, weight, pairs in zip(setup.teachers, weights, zip(*alignments, strict=True), strict=True):
        targets = tuple(target for target, _ in pairs)
        cache = None
        if config.cache.views:
            cache = fill_cache(teacher, config.alignment, targets, build_cache_pass(config, setup.run, setup.images))
        inputs = pairs[-1][1]
        supervisions.append(Supervision(teacher=teacher, weight=weight, targets=targets, inputs=inputs, cache=cache))
    return supervisions


def build_cache_pass(config: DistillConfig, run: Run, images: RunImages) -> CachePass:
    """The images and views whose teacher outputs a run stores."""
    return CachePass(
        files=images.train,
        run=run,
        cache=config.cache,
        view=config.view,
        teacher_view=config.teacher_view,
        seed=config.seed,
        amp=choose_amp(config.amp, run.device),
        workers=config.workers,
        on_broken=config.on_broken,
        own=config.out / "cache",
        as_stored=config.as_stored,
    )


def student_alignments(
    config: DistillConfig, run: Run, images: RunImages, teachers: list[FrozenTeacher], index: int, dim: int
) -> list[tuple[AlignedTarget, AlignmentInputs]]:
    """A student's alignments, one per teacher: those in the run directory, those of the given files, or fitted ones.

    Args:
        config: the run.
        run: this process.
        images: of the run; alignments are fitted on all of them, or on a draw of `config.alignment_images`.
        teachers: all teachers of the run.
        index: of the student.
        dim: the student's width.
    """
    file = config.out / alignment_file_name(config, index)
    if all(run.gather(file.exists())):
        loaded = load_alignments(file)
        for name, teacher, (_, _, inputs) in zip(config.teacher.name, teachers, loaded, strict=True):
            weights = {"teacher": Input(f"the weights of teacher {name}", teacher.sha256)}
            refuse_changed_inputs(config.out, weights, {"teacher": inputs.teacher_sha256 or teacher.sha256})
        return [(target.to(run.device), inputs) for _, target, inputs in loaded]
    alignments = []
    unit = isinstance(config.distance, Mse) and config.distance.unit_target
    for number, teacher in enumerate(teachers):
        if config.alignment_file:
            given = config.alignment_file[number]
            alignments.append(load_matching_alignment(given, teacher, config.alignment, dim, run, unit=unit))
            continue
        view = None
        if config.alignment_view == "training":
            view = RandomView.for_teacher(teacher, config.view, config.teacher_view, config.seed)
        fit = FitPass(
            files=draw_images(images.all, config.alignment_images, config.seed),
            run=run,
            view=view,
            unit=unit,
            workers=config.workers,
            on_broken=config.on_broken,
            as_stored=config.as_stored,
        )
        alignments.append(cached_alignment(teacher, config.alignment, dim, fit))
    if run.is_main:
        write_file(file, encode_alignments([(config.alignment, target, inputs) for target, inputs in alignments]))
    return alignments


def alignment_file_name(config: DistillConfig, index: int) -> str:
    """The file of a student's alignments in the run directory."""
    return ALIGNMENT if len(config.student.name) == 1 else f"alignment-{index + 1}.safetensors"
