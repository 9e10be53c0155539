"""What a run is made of: images, teachers, students with their heads, and the alignments between them."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stillroom.backbone import Backbone, ImageFiles, Run, read_labelled, read_unlabelled
from stillroom.backbone.atomic import write_file
from stillroom.distill.alignment import AlignedTarget
from stillroom.distill.alignment_file import AlignmentInputs, build_alignment, encode_alignments, load_alignments
from stillroom.distill.config import DistillConfig
from stillroom.distill.factors import too_many_discriminants
from stillroom.distill.fit import DrawnView, FitPass, find_alignment, given_alignment
from stillroom.distill.monitor import split_held_out
from stillroom.distill.slots import Lda, Mse
from stillroom.distill.student import Learner, build_learner, build_student
from stillroom.distill.teacher import FrozenTeacher, build_teachers

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
    return read_labelled(config.data) if learns_from_labels(config) else read_unlabelled(config.data)


def learns_from_labels(config: DistillConfig) -> bool:
    """Whether an alignment is to be fitted on labelled images."""
    return isinstance(config.alignment, Lda) and not config.alignment_file


def check_widths(
    config: DistillConfig, files: ImageFiles, teachers: list[FrozenTeacher], students: list[Backbone]
) -> None:
    """Refuse targets, heads and levels that cannot be, before anything is fitted.

    Raises:
        ValueError: see `build_alignment`, `build_learner`; discriminants of LDA beyond the number of classes.
    """
    if len(config.alignment_file) not in (0, len(teachers)):
        raise ValueError(f"{len(config.alignment_file)} alignment files for {len(teachers)} teachers: give one each")
    for student in students:
        targets = [build_alignment(config.alignment, teacher.dim, student.spec.dim) for teacher in teachers]
        if learns_from_labels(config) and targets[0].dim >= len(files.classes):
            raise ValueError(too_many_discriminants(len(files.classes), targets[0].dim))
        build_learner(config, copy.deepcopy(student), teachers, [target.dim for target in targets])


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
    if all(run.gather(own.exists())):
        return [(target.to(run.device), inputs) for _, target, inputs in load_alignments(own)]
    found = []
    unit = isinstance(config.distance, Mse) and config.distance.unit_target
    for number, teacher in enumerate(teachers):
        if config.alignment_file:
            file = config.alignment_file[number]
            found.append(given_alignment(file, teacher, config.alignment, dim, run, unit=unit))
            continue
        drawn = None
        if config.alignment_view == "training":
            drawn = DrawnView.of(config.view, config.teacher_view, config.seed, teacher)
        fit = FitPass(files=files, run=run, view=drawn, unit=unit, workers=config.workers, on_broken=config.on_broken)
        found.append(find_alignment(teacher, config.alignment, dim, fit))
    if run.is_main:
        write_file(own, encode_alignments([(config.alignment, target, inputs) for target, inputs in found]))
    return found


def alignment_name(config: DistillConfig, place: int) -> str:
    """The file of a student's alignments in the run directory."""
    return ALIGNMENT if len(config.student.name) == 1 else f"alignment-{place + 1}.safetensors"
