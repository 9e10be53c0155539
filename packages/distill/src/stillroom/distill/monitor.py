"""Measure students during training: distance to and agreement with the teacher, rank, spread, k-NN, collapse."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.backbone import Backbone
from stillroom.backbone.flags import Amp, OnBroken, Workers
from stillroom.distill.agreement import describe_agreement, neighbour_agreement
from stillroom.distill.auto_config import AUTO
from stillroom.distill.config import DistillConfig, Monitor
from stillroom.distill.distances import distance
from stillroom.distill.slots import Distance, SvdPts
from stillroom.distill.student import StudentModel
from stillroom.distill.teacher import FrozenTeacher, Supervision, TeacherOutput
from stillroom.images import EvaluationView, ImageDataset, Source
from stillroom.images.loaders import EvaluationBatches, build_loader
from stillroom.runs import Run
from stillroom.runs.hardware import autocast

KnnMonitor = Callable[[Backbone, Path, Run], dict[str, float]]
"""(student, labelled folder, this process) -> metrics; the first of them selects the best student."""

AGREEMENT = "neighbour_agreement"
"""The label-free metric of how much was learned; see `stillroom.distill.agreement`."""
MIN_GAIN = 0.02
"""Agreement that a student must gain to have learned anything; docs/recipes.md shows where it comes from."""
MIN_STEPS_JUDGED = 200
"""Steps in which no student learns much, whatever its recipe."""
CHECK_COLLAPSE_EVERY = 50
"""Steps between two checks of a batch's features for collapse."""
MIN_COLLAPSE_IMAGES = 8
COLLAPSED_RANK = 1.5
COLLAPSED_SPREAD = 0.01
_BATCH_SIZE = 64


def effective_rank(features: Float[Tensor, "b d"]) -> float:
    """How many directions features take: exp of the entropy of their singular values' shares, after centring.

    Reference: Roy and Vetterli, "The effective rank", EUSIPCO 2007; used on representations by RankMe (Garrido et al.,
    ICML 2023).
    """
    centred = (features - features.mean(dim=0)).double()
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred  # the smaller of the two
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


def relative_spread(features: Float[Tensor, "b d"]) -> float:
    """The mean standard deviation per dimension over the features' root mean square: 0 where all are the same."""
    rms = features.double().square().mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    return float(features.double().std(dim=0).mean() / rms)


def collapse_warning(features: Float[Tensor, "b d"]) -> str | None:
    """A warning where features hardly differ between the images of a batch, else None; None for under 8 images."""
    if len(features) < MIN_COLLAPSE_IMAGES:
        return None
    rank, spread = effective_rank(features), relative_spread(features)
    if rank >= COLLAPSED_RANK and spread >= COLLAPSED_SPREAD:
        return None
    return (
        f"the student collapses: its features have effective rank {rank:.1f} and vary by {100 * spread:.2f} % "
        f"over a batch; lower --lr, or warm up"
    )


def collapse_warnings(features: Iterable[Tensor]) -> list[str]:
    """The warning of each student that collapses, from its features of a batch."""
    return [text for pooled in features if (text := collapse_warning(pooled.detach().float().cpu()))]


def first_judged_epoch(epochs: int, steps_per_epoch: int) -> int:
    """The first epoch after which a run is judged on what it learned: a tenth of it, and at least 200 steps."""
    return min(max(round(epochs / 10), math.ceil(MIN_STEPS_JUDGED / steps_per_epoch), 1), epochs)


def learning_warnings(
    config: DistillConfig, measured: Mapping[str, float], untrained: Mapping[str, float]
) -> list[str]:
    """A warning for each student whose agreement with the teacher has hardly risen since before the first step.

    Args:
        config: the run; its command takes every flag that the warning names.
        measured: metrics of the students.
        untrained: their metrics before the first step.
    """
    advice = "try --lr three times higher or lower, another --loss-weight, more steps by --epochs or --batch-size"
    if isinstance(config.alignment, SvdPts):
        is_auto = config.method.startswith(AUTO)
        advice += ", or no PTS (the command `svd` instead of `auto`)" if is_auto else ", or no PTS (alignment:svd)"
    return [
        f"the student learned almost nothing: its agreement with the teacher's nearest neighbours, beyond chance, is "
        f"{describe_agreement(value)}; before the first step it was {describe_agreement(untrained[name])}; {advice}"
        for name, value in measured.items()
        if name.startswith(AGREEMENT) and name in untrained and value < untrained[name] + MIN_GAIN
    ]


@dataclass
class Best:
    """The best score so far, its step, and the number of measurements since."""

    score: float = float("-inf")
    step: int = 0
    stale: int = 0

    def update(self, score: float, step: int) -> bool:
        """Record a measurement; return whether it is the best so far."""
        if score > self.score:
            self.score, self.step, self.stale = score, step, 0
            return True
        self.stale += 1
        return False

    def should_stop(self, patience: int) -> bool:
        """Whether `patience` measurements have passed without a better one; never for 0."""
        return bool(patience) and self.stale >= patience


@dataclass(kw_only=True)
class StudentMonitor:
    """Measures the students at the end of some epochs.

    Args:
        settings: how often, and on which labelled folder.
        run: this process.
        held_out: images that no student is trained on, or None.
        supervisions: teachers and targets.
        distance: between predictions and targets.
        epochs, steps_per_epoch: of the run.
        workers: processes that decode images.
        amp: number format in which the students are measured, that of the run; the teachers are read in float32.
        on_broken: see `OnBroken`.
        knn: see `KnnMonitor`.
    """

    settings: Monitor
    run: Run
    held_out: Source | None
    supervisions: Sequence[Supervision]
    distance: Distance
    epochs: int
    steps_per_epoch: int
    workers: Workers = 0
    amp: Amp = "none"
    on_broken: OnBroken = "refuse"
    knn: KnnMonitor | None = None
    _teacher_features: list[Tensor] = field(default_factory=list)

    def is_due(self, epoch: int) -> bool:
        """Whether the students are measured after this many epochs."""
        has_images = self.held_out is not None or self.settings.knn is not None
        return has_images and (epoch % self.settings.every == 0 or self.is_judged(epoch))

    def is_judged(self, epoch: int) -> bool:
        """Whether the run is judged on what it learned after this many epochs: early on, and at its end."""
        return epoch in (first_judged_epoch(self.epochs, self.steps_per_epoch), self.epochs)

    @torch.no_grad()
    def measure(self, students: Sequence[StudentModel], *, labelled: bool = True) -> tuple[float, dict[str, float]]:
        """Measure the students: the score that selects the best ones (higher is better), and all metrics.

        With several students each metric's name ends in the student's number, and the score is their mean.

        Args:
            students: to measure.
            labelled: measure on the labelled folder too, if there is one.
        """
        scores: list[float] = []
        metrics: dict[str, float] = {}
        for index, student in enumerate(students):
            was_training = student.training
            student.eval()
            measured: dict[str, float] = {}
            score = 0.0
            if self.held_out is not None:
                measured |= self._measure_held_out(index, student, self.held_out)
                score = measured[AGREEMENT]
            if labelled and self.settings.knn is not None:
                assert self.knn is not None, "check_settings refuses --monitor.knn without it"
                with autocast(self.amp, self.run.device):
                    accuracies = self.knn(student.backbone, self.settings.knn, self.run)
                measured |= {f"monitor_{name}": value for name, value in accuracies.items()}
                score = next(iter(accuracies.values()))
            scores.append(score)
            student.train(was_training)
            suffix = f"_{index + 1}" if len(students) > 1 else ""
            metrics |= {f"{name}{suffix}": value for name, value in measured.items()}
        return self.run.gather((sum(scores) / len(scores), metrics))[0]  # one decision for all processes

    def _measure_held_out(self, index: int, student: StudentModel, files: Source) -> dict[str, float]:
        """Compare a student with its teachers on held-out images; several teachers are averaged by weight."""
        if not self._teacher_features:  # computed once
            self._teacher_features = [self._features(files, one.teacher) for one in self.supervisions]
        with autocast(self.amp, self.run.device):
            pooled = self._features(files, student)
        loss = agreement = 0.0
        for supervision, features, head in zip(self.supervisions, self._teacher_features, student.heads, strict=True):
            target = supervision.targets[index](features.to(self.run.device))
            prediction = head(pooled.to(self.run.device))
            loss += supervision.weight * float(distance(self.distance, prediction, target))
            agreement += supervision.weight * neighbour_agreement(pooled, features)
        return {
            "held_out_loss": loss,
            AGREEMENT: agreement,
            "effective_rank": effective_rank(pooled),
            "relative_spread": relative_spread(pooled),
        }

    def _features(self, files: Source, net: FrozenTeacher | StudentModel) -> Tensor:
        """A net's features of all readable images, in order, in fixed batches divided over all processes."""
        dataset = ImageDataset(files, EvaluationView(net.backbone.spec.input), on_broken=self.on_broken)
        loader = build_loader(dataset, EvaluationBatches(len(files), _BATCH_SIZE, self.run), self.workers)
        batches: list[tuple[Tensor, Tensor]] = []
        for batch in loader:
            if len(batch):
                output = net(batch.images.to(self.run.device))
                features = output.features if isinstance(output, TeacherOutput) else output.pooled
                batches.append((batch.indices, features.float().cpu()))
        if isinstance(net, FrozenTeacher):
            net.finish_pass()
        gathered = [pair for pairs in self.run.gather(batches) for pair in pairs]
        order = torch.cat([indices for indices, _ in gathered]).argsort()
        return torch.cat([values for _, values in gathered])[order]
