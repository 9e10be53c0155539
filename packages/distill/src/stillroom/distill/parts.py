"""What a run is made of: images, teachers, students with their heads, and the alignments between them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stillroom.backbone import Backbone, ImageFiles, Run, read_labelled, read_unlabelled
from stillroom.backbone.files import write_file
from stillroom.distill.alignment import AlignedTarget
from stillroom.distill.alignment_file import AlignmentInputs, encode_alignments, load_alignments
from stillroom.distill.config import DistillConfig, Lda, Mse
from stillroom.distill.fit import FitPass, find_alignment, given_alignment
from stillroom.distill.monitor import split_held_out
from stillroom.distill.student import Learner, build_learner, build_student
from stillroom.distill.teacher import FrozenTeacher, build_teachers
from stillroom.distill.views import Views

ALIGNMENT = "alignment.safetensors"


@dataclass(kw_only=True)
class Parts:
    """What a run is made of, once its nets are built and its alignments fitted.

    Args:
        files: the images to train on.
        held_out: images that only show the distance to the target, or None.
        teachers: frozen.
        learners: the students with their heads.
        targets: [teacher][student] alignments.
        inputs: what each teacher's alignments were fitted on.
    """

    files: ImageFiles
    held_out: ImageFiles | None
    teachers: list[FrozenTeacher]
    learners: list[Learner]
    targets: list[list[AlignedTarget]]
    inputs: list[AlignmentInputs]

    def taught(self) -> Iterator[tuple[FrozenTeacher, list[AlignedTarget]]]:
        """Each teacher with the students' alignments of it."""
        return zip(self.teachers, self.targets, strict=True)


def read_files(config: DistillConfig) -> ImageFiles:
    """The images; with labels only where the alignment needs them."""
    return read_labelled(config.data) if isinstance(config.alignment, Lda) else read_unlabelled(config.data)


def build_nets(
    config: DistillConfig, own: Backbone | Sequence[Backbone] | None, run: Run
) -> tuple[list[FrozenTeacher], list[Backbone]]:
    """The teachers and the bare students, on the run's device."""
    given = [own] if isinstance(own, Backbone) else own
    teachers = [teacher.to(run.device) for teacher in build_teachers(config.teacher.each(), given)]
    students = [build_student(net, config.seed).to(run.device) for net in config.student.each()]
    return teachers, students


def prepare(
    config: DistillConfig, run: Run, files: ImageFiles, teachers: list[FrozenTeacher], students: list[Backbone]
) -> Parts:
    """Fit or find the alignments, and put heads on the students."""
    trained, held_out = split_held_out(files, config.monitor.held_out, config.seed)
    targets: list[list[AlignedTarget]] = [[] for _ in teachers]
    inputs: list[AlignmentInputs] = []
    for place, student in enumerate(students):
        found = find_alignments(config, run, files, teachers, place, student.spec.dim)
        for own, (target, _) in zip(targets, found, strict=True):
            own.append(target)
        inputs = [record for _, record in found]
    learners = [
        build_learner(config, student, teachers, [own[place].dim for own in targets]).to(run.device)
        for place, student in enumerate(students)
    ]
    return Parts(files=trained, held_out=held_out, teachers=teachers, learners=learners, targets=targets, inputs=inputs)


def find_alignments(
    config: DistillConfig, run: Run, files: ImageFiles, teachers: list[FrozenTeacher], place: int, dim: int
) -> list[tuple[AlignedTarget, AlignmentInputs]]:
    """A student's alignments, one per teacher: the run's own from an earlier life, the given file's, or fitted ones."""
    own = config.out / alignment_name(config, place)
    known = own.exists()
    run.wait()
    if known:
        return [(target.to(run.device), inputs) for _, target, inputs in load_alignments(own)]
    found = []
    for teacher in teachers:
        if config.alignment_file is not None:
            found.append(given_alignment(config.alignment_file, teacher, config.alignment, dim, run))
            continue
        drawn = None
        if config.alignment_view == "training":
            views = Views(config.view, config.teacher_view, [], [teacher.backbone.spec.input])
            drawn = (views, f"{config.view} {config.teacher_view} seed {config.seed}", config.seed)
        unit = isinstance(config.distance, Mse) and config.distance.unit_target
        fit = FitPass(files=files, run=run, view=drawn, unit=unit, workers=config.workers, on_broken=config.on_broken)
        found.append(find_alignment(teacher, config.alignment, dim, fit))
    if run.is_main:
        write_file(own, encode_alignments([(config.alignment, target, inputs) for target, inputs in found]))
    return found


def alignment_name(config: DistillConfig, place: int) -> str:
    """The file of a student's alignments in the run directory."""
    return ALIGNMENT if len(config.student.name) == 1 else f"alignment-{place + 1}.safetensors"
