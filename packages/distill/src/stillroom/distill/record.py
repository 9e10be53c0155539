"""What a run leaves: the students' checkpoints and results.json."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor, nn

from stillroom.backbone import Data, Results, Run, Teacher, save_checkpoint, write_results
from stillroom.backbone.configs import config_to_dict
from stillroom.backbone.heads import describe_head
from stillroom.backbone.manifest import Head, Manifest
from stillroom.backbone.provenance import made_by
from stillroom.backbone.results import CheckpointRecord, DatasetRecord, read_results
from stillroom.backbone.spec import Licence, inherit_licence
from stillroom.distill.alignment import ScaledSvd
from stillroom.distill.alignment_file import encode_alignments
from stillroom.distill.config import UNIONS, DistillConfig
from stillroom.distill.monitor import AGREEMENT, nothing_learned
from stillroom.distill.setup import Parts
from stillroom.distill.state import TrainState
from stillroom.distill.student import Learner

PACKAGE = "stillroom-distill"
STUDENT = "student"
VERSION = 1
"""Of the protocol that results.json names, `<method>/v1`."""


def student_name(config: DistillConfig, place: int) -> str:
    """The folder of a student in the run directory: `student`, or `student-1` and so on."""
    return STUDENT if len(config.student.name) == 1 else f"{STUDENT}-{place + 1}"


def describe_teachers(config: DistillConfig, parts: Parts) -> Teacher:
    """The teacher of the manifest; several become one, whose hash is that of their hashes in order."""
    hashes = [teacher.sha256 for teacher in parts.teachers]
    licences = [teacher.backbone.spec.licence for teacher in parts.teachers]
    if len(hashes) == 1:
        return Teacher(name=config.teacher.name[0], weights_sha256=hashes[0], licence=licences[0])
    known = {licence.spdx for licence in licences}
    restrictions = dict.fromkeys(phrase for licence in licences for phrase in licence.restrictions)
    spdx = known.pop() if len(known) == 1 else " AND ".join(sorted(known))
    return Teacher(
        name=" + ".join(config.teacher.name),
        weights_sha256=hashlib.sha256("".join(hashes).encode()).hexdigest(),
        licence=Licence(spdx=spdx, restrictions=tuple(restrictions)),
    )


def write_students(
    config: DistillConfig, run: Run, parts: Parts, learners: Sequence[Learner], *, best: bool = False
) -> list[Manifest]:
    """Write each student's checkpoint, `student` or `student-best`; only the main process does."""
    if not run.is_main:
        return []
    taught_by = describe_teachers(config, parts)
    manifests = []
    for place, learner in enumerate(learners):
        student = learner.backbone
        student.spec = replace(student.spec, licence=inherit_licence(taught_by.licence, config.data_licence))
        targets = [own[place] for own in parts.targets]
        alignments = [(config.alignment, target, inputs) for target, inputs in zip(targets, parts.inputs, strict=True)]
        manifests.append(
            save_checkpoint(
                config.out / (student_name(config, place) + ("-best" if best else "")),
                student,
                method=config.method,
                package=PACKAGE,
                config=config_to_dict(config, UNIONS),
                teacher=taught_by,
                data=Data(count=len(parts.files), fingerprint=parts.files.fingerprint),
                heads=kept_heads(learner) if config.keep_head else None,
                alignment=encode_alignments(alignments),
            )
        )
    return manifests


def kept_heads(learner: Learner) -> Mapping[str, tuple[Head, Mapping[str, Tensor]]]:
    """The trained heads, named `distill`, or `distill-1` and so on with several teachers."""
    many = len(learner.heads) > 1
    return {
        f"distill-{place + 1}" if many else "distill": (describe_head(head), head.state_dict())
        for place, head in enumerate(learner.heads)
        if isinstance(head, nn.Sequential)
    }


def finish(config: DistillConfig, run: Run, parts: Parts, state: TrainState, broken: list[str], seconds: float) -> None:
    """Write the students' checkpoints and results.json."""
    manifests = write_students(config, run, parts, state.leaving())
    if not run.is_main:
        return
    datasets = {"train": DatasetRecord.of(parts.files, broken=len(broken))}
    if parts.held_out is not None:
        datasets["held_out"] = DatasetRecord.of(parts.held_out)
    extra = {
        "alignment": [asdict(inputs) for inputs in parts.inputs],
        "std_ratio_before_after": [[target.std_ratio_ for target in own] for own in parts.targets],
        "rank": [
            int(own[0].alignment.svd.rank_) if isinstance(own[0].alignment, ScaledSvd) else None
            for own in parts.targets
        ],
        "steps": state.step,
        "best": asdict(state.best) if state.measured else None,
        "untrained": state.untrained,
        "warnings": nothing_learned(state.measured, state.untrained),
        "students": [manifest.weights.sha256 for manifest in manifests],
        "broken": broken,
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
            metrics={**state.losses, **state.measured},
            seed=config.seed,
            seconds=seconds,
            made_by=made_by(PACKAGE, config_to_dict(config, UNIONS)),
            extra=extra,
        ),
    )


def summary(path: Path) -> str:
    """The last line a run prints: its directory and the one number that matters."""
    results = read_results(path)
    accuracy = [name for name in results.metrics if name.startswith("monitor_")]
    if accuracy:
        return f"{path}: {100 * results.metrics[accuracy[0]]:.1f} % {accuracy[0].removeprefix('monitor_')}"
    shown = f"{path}: loss {results.metrics['loss']:.4f}"
    if "held_out_loss" in results.metrics:
        shown += f", held out {results.metrics['held_out_loss']:.4f}"
    if AGREEMENT in results.metrics:
        shown += f", {100 * results.metrics[AGREEMENT]:.1f} % of the teacher's neighbours"
    return shown
