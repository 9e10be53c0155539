"""Write the results of a run: the students' checkpoints and results.json."""

import hashlib
import re
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor, nn

from stillroom.backbone import Data, Teacher, save_checkpoint
from stillroom.backbone.atomic import replace_directory
from stillroom.backbone.heads import describe_head
from stillroom.backbone.manifest import MANIFEST, Head, Manifest, kept_epochs, read_manifest
from stillroom.backbone.provenance import made_by
from stillroom.backbone.spec import Licence, inherit_licence
from stillroom.distill.agreement import describe_agreement
from stillroom.distill.alignment import ScaledSvd
from stillroom.distill.alignment_file import encode_alignments
from stillroom.distill.config import UNIONS, DistillConfig
from stillroom.distill.monitor import AGREEMENT, learning_warnings
from stillroom.distill.setup import RunSetup
from stillroom.distill.state import TrainState
from stillroom.distill.student import StudentModel
from stillroom.distill.teacher import FrozenTeacher, Supervision
from stillroom.images.picture import describe_decoding
from stillroom.runs import Results, write_results
from stillroom.runs.configs import config_to_dict
from stillroom.runs.results import CheckpointRecord, read_results
from stillroom.runs.run_files import read_metrics

PACKAGE = "stillroom-distill"
STUDENT = "student"
VERSION = 1
"""Version of the protocol in results.json, `<method>/v1`."""


def student_name(config: DistillConfig, index: int) -> str:
    """The folder of a student in the run directory: `student`, or `student-1` and so on."""
    return STUDENT if len(config.student.name) == 1 else f"{STUDENT}-{index + 1}"


def describe_teachers(names: Sequence[str], teachers: Sequence[FrozenTeacher]) -> Teacher:
    """The manifest's record of the teachers; several become one, whose hash is that of their hashes in order."""
    hashes = [teacher.sha256 for teacher in teachers]
    licences = [teacher.backbone.spec.licence for teacher in teachers]
    if len(hashes) == 1:
        return Teacher(name=names[0], weights_sha256=hashes[0], licence=licences[0])
    known = {licence.spdx for licence in licences}
    restrictions = dict.fromkeys(phrase for licence in licences for phrase in licence.restrictions)
    spdx = known.pop() if len(known) == 1 else " AND ".join(sorted(known))
    return Teacher(
        name=" + ".join(names),
        weights_sha256=hashlib.sha256("".join(hashes).encode()).hexdigest(),
        licence=Licence(spdx=spdx, restrictions=tuple(restrictions)),
    )


def write_students(
    config: DistillConfig,
    setup: RunSetup,
    supervisions: Sequence[Supervision],
    students: Sequence[StudentModel],
    *,
    suffix: str = "",
    notes: tuple[str, ...] = (),
) -> list[Manifest]:
    """Write each student's checkpoint; only the main process does.

    Args:
        config: the run.
        setup: its images and teachers.
        supervisions: its alignments.
        students: to save.
        suffix: of the checkpoints' names: `-best` for `student-best`, `@40` for the student of epoch 40.
        notes: one sentence each, for the manifests.

    Returns:
        The manifests; none on the other processes.
    """
    if not setup.run.is_main:
        return []
    teacher = describe_teachers(config.teacher.name, setup.teachers)
    manifests = []
    for index, student in enumerate(students):
        backbone = student.backbone
        backbone.spec = replace(backbone.spec, licence=inherit_licence(teacher.licence, config.data_licence))
        alignments = [(config.alignment, one.targets[index], one.inputs) for one in supervisions]
        manifests.append(
            save_checkpoint(
                config.out / (student_name(config, index) + suffix),
                backbone,
                method=config.method,
                package=PACKAGE,
                config=config_to_dict(config, UNIONS),
                teacher=teacher,
                data=Data(count=len(setup.images.train), fingerprint=setup.images.train.fingerprint),
                heads=trained_heads(student) if config.keep_head else None,
                alignment=encode_alignments(alignments),
                notes=notes,
            )
        )
    return manifests


def copy_best_students(config: DistillConfig) -> list[Manifest]:
    """Copy each student's `student-best` to `student`; return the manifests."""
    manifests = []
    for index in range(len(config.student.name)):
        student = config.out / student_name(config, index)
        best = student.with_name(f"{student.name}-best")
        with replace_directory(student) as folder:
            shutil.copytree(best, folder, dirs_exist_ok=True)
        manifests.append(read_manifest(student / MANIFEST))
    return manifests


def outcome_metrics(config: DistillConfig, state: TrainState, *, ends_with_best: bool) -> dict[str, float]:
    """The metrics of the students that a run ends with: losses, and what the monitor measured.

    Args:
        config: the run; the metrics of its best students are read from metrics.jsonl. Where it has no loss up to their
            step, the loss is that of the last line.
        state: at the end of training.
        ends_with_best: whether these are the best students, not the last ones.
    """
    last = {**state.losses, **state.measured}
    if not ends_with_best:
        return last
    best = {}
    for row in read_metrics(config.out):
        if row["step"] <= state.best.step:
            best.update({name: value for name, value in row.items() if name in last})
    return {**last, **best}


def trained_heads(student: StudentModel) -> Mapping[str, tuple[Head, Mapping[str, Tensor]]]:
    """The trained heads of a student, named `distill`, or `distill-1` and so on with several teachers."""
    has_several = len(student.heads) > 1
    return {
        f"distill-{index + 1}" if has_several else "distill": (describe_head(head), head.state_dict())
        for index, head in enumerate(student.heads)
        if isinstance(head, nn.Sequential)
    }


def write_run_results(
    config: DistillConfig,
    setup: RunSetup,
    supervisions: Sequence[Supervision],
    state: TrainState,
    metrics: Mapping[str, float],
    broken: list[str],
    seconds: float,
    *,
    ends_with_best: bool,
) -> None:
    """Write the students' checkpoints and results.json.

    Args:
        config: the run.
        setup: its images and teachers.
        supervisions: its alignments.
        state: at the end of training.
        metrics: of the students that are written, see `outcome_metrics`.
        broken: one sentence per unreadable image.
        seconds: wall time since training began or was last resumed.
        ends_with_best: write the best students as `student`, not the last ones.
    """
    if ends_with_best:
        manifests = copy_best_students(config) if setup.run.is_main else []
    else:
        manifests = write_students(config, setup, supervisions, state.eval_models())
    if not setup.run.is_main:
        return
    datasets = {"train": setup.images.train.record(broken=len(broken))}
    if setup.images.held_out is not None:
        datasets["held_out"] = setup.images.held_out.record()
    extra = {
        "alignment": [asdict(one.inputs) for one in supervisions],
        "std_ratio_before_after": [[target.std_ratio_ for target in one.targets] for one in supervisions],
        "rank": [svd_rank(one) for one in supervisions],
        "steps": state.step,
        "student_step": state.best.step if ends_with_best else state.step,
        "best": asdict(state.best) if state.measured else None,
        "untrained": state.untrained,
        "warnings": learning_warnings(config, metrics, state.untrained),
        "students": [manifest.weights.sha256 for manifest in manifests],
        "kept_epochs": kept_epochs(config.out / student_name(config, 0)),
        "broken": broken,
        "images": describe_decoding(as_stored=config.as_stored),
        "imported_features": [one.cache.imported if one.cache is not None else None for one in supervisions],
    }
    write_results(
        config.out,
        Results(
            task="distill",
            protocol=f"{config.method}/v{VERSION}",
            datasets=datasets,
            checkpoint=CheckpointRecord(
                path=str(config.out / student_name(config, 0)),
                sha256=manifests[0].weights.sha256,
                method=config.method,
            ),
            metrics=dict(metrics),
            seed=config.seed,
            seconds=seconds,
            made_by=made_by(PACKAGE, config_to_dict(config, UNIONS)),
            extra=extra,
        ),
    )


def svd_rank(supervision: Supervision) -> int | None:
    """The rank of a teacher's features; None for alignments that are not an SVD."""
    alignment = supervision.targets[0].alignment
    return int(alignment.svd.rank_) if isinstance(alignment, ScaledSvd) else None


def summary(path: Path) -> str:
    """The last line that a run prints: its directory, its main metrics, and a better student than its last one."""
    results = read_results(path)
    accuracy = [name for name in results.metrics if name.startswith("monitor_")]
    name = accuracy[0] if accuracy else AGREEMENT
    texts = []
    if not accuracy:
        texts.append(f"loss {results.metrics['loss']:.4f}")
        if "held_out_loss" in results.metrics:
            texts.append(f"held out {results.metrics['held_out_loss']:.4f}")
    score = student_score(results.metrics, name)
    if score is not None:
        texts.append(describe_score(name, score))
        best, step = results.extra["best"], results.extra["student_step"]
        if step < results.extra["steps"]:
            texts.append(f"the best student, of step {step}")
        elif best["score"] > score:
            texts.append(f"{STUDENT}-best, of step {best['step']}: {describe_score(name, best['score'])}")
    return f"{path}: {', '.join(texts)}"


def student_score(metrics: Mapping[str, float], name: str) -> float | None:
    """A metric as the monitor scores it: of one student, or the mean of several; None if it is not measured."""
    pattern = rf"{re.escape(name.removesuffix('_1'))}(_\d+)?"
    values = [value for key, value in metrics.items() if re.fullmatch(pattern, key)]
    return statistics.fmean(values) if values else None


def describe_score(name: str, score: float) -> str:
    """The score of a student in words."""
    if name == AGREEMENT:
        return f"agreement with the teacher's neighbours {describe_agreement(score)}"
    return f"{100 * score:.1f} % {name.removeprefix('monitor_')}"
