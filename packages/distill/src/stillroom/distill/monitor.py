"""What is watched while a student trains: distance to and agreement with the teacher, rank, spread, k-NN, collapse."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.backbone import Backbone, EvaluationView, ImageDataset, ImageFiles, Run, read_labelled
from stillroom.backbone.loading import EvaluationBatches, build_loader
from stillroom.distill.agreement import neighbour_agreement
from stillroom.distill.alignment import AlignedTarget
from stillroom.distill.config import DistillConfig
from stillroom.distill.distances import distance
from stillroom.distill.student import Learner
from stillroom.distill.teacher import FrozenTeacher

KnnMonitor = Callable[[Backbone, Path, Run], dict[str, float]]
"""(student, labelled folder, this process) -> metrics, the first of them the one that picks the best student."""

AGREEMENT = "neighbour_agreement"
"""The label-free figure of how much was learned; see `stillroom.distill.agreement`."""
LEAST_LEARNED = 0.02
"""Agreement that a student must gain to have learned anything; docs/recipes.md shows where it comes from."""
MIN_STEPS_JUDGED = 200
"""Steps that no student has learned much in, whatever its recipe."""
MAX_HELD_OUT = 512
MIN_HELD_OUT = 8
CHECK_COLLAPSE_EVERY = 50
"""Steps between two looks at the features of a batch."""
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
    """The mean standard deviation per dimension, over the features' root mean square: 0 where all are the same."""
    rms = features.double().square().mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    return float(features.double().std(dim=0).mean() / rms)


def collapse(features: Float[Tensor, "b d"]) -> str | None:
    """One sentence where features hardly differ between the images of a batch, else None; under 8 images None."""
    if len(features) < MIN_HELD_OUT:
        return None
    rank, spread = effective_rank(features), relative_spread(features)
    if rank >= COLLAPSED_RANK and spread >= COLLAPSED_SPREAD:
        return None
    return (
        f"the student collapses: its features take {rank:.1f} directions and vary by {100 * spread:.2f} % "
        f"over a batch; lower --lr, or warm up"
    )


def first_judged(epochs: int, steps_per_epoch: int) -> int:
    """The epoch after which a run is first asked whether it learns: a tenth of it, and at least 200 steps."""
    return min(max(round(epochs / 10), math.ceil(MIN_STEPS_JUDGED / steps_per_epoch), 1), epochs)


def nothing_learned(measured: Mapping[str, float], untrained: Mapping[str, float]) -> list[str]:
    """One sentence for each student whose agreement with the teacher has hardly risen since before the first step."""
    return [
        f"the student learned about nothing: it shares {100 * value:.1f} % of the teacher's nearest neighbours beyond "
        f"chance, {100 * untrained[name]:.1f} % before the first step; try --lr three times higher or lower, another "
        f"--loss-weight, more steps (--epochs, or a smaller --batch-size), or no PTS (alignment:svd)"
        for name, value in measured.items()
        if name.startswith(AGREEMENT) and name in untrained and value < untrained[name] + LEAST_LEARNED
    ]


def split_held_out(files: ImageFiles, share: float, seed: int) -> tuple[ImageFiles, ImageFiles | None]:
    """Files to train on, and a seeded share of them, at most 512, to hold out; None where it would be under 8.

    Raises:
        ValueError: a share outside [0, 0.5].
    """
    if not 0 <= share <= 0.5:
        raise ValueError(f"--monitor.held-out is {share}: it must lie in [0, 0.5]")
    count = min(MAX_HELD_OUT, round(share * len(files)))
    if count < MIN_HELD_OUT:
        return files, None
    order = np.random.default_rng([seed, len(files)]).permutation(len(files)).tolist()
    return files.subset(sorted(order[count:])), files.subset(sorted(order[:count]))


def check_labelled(folder: Path) -> None:
    """Refuse a folder for k-NN before the run begins.

    Raises:
        ValueError: missing folder, no class folders, classes that differ between train/ and val/.
    """
    if (folder / "train").is_dir() and (folder / "val").is_dir():
        read_labelled(folder / "val", read_labelled(folder / "train").classes)
    else:
        read_labelled(folder)


@dataclass
class Best:
    """The best measurement so far, and how many have passed since."""

    score: float = float("-inf")
    step: int = 0
    stale: int = 0

    def beats(self, score: float, step: int) -> bool:
        """Take note of a measurement; whether it is the best."""
        if score > self.score:
            self.score, self.step, self.stale = score, step, 0
            return True
        self.stale += 1
        return False

    def should_stop(self, patience: int) -> bool:
        """Whether `patience` measurements have passed without a better one; 0: never."""
        return bool(patience) and self.stale >= patience


@dataclass(kw_only=True)
class Watch:
    """Measures the students at the end of some epochs.

    Args:
        config: the run.
        run: this process.
        held_out: images that nobody trains on, or None.
        teachers: as they teach.
        targets: [teacher][student].
        steps_per_epoch: of the run.
        knn: see `KnnMonitor`.
    """

    config: DistillConfig
    run: Run
    held_out: ImageFiles | None
    teachers: Sequence[FrozenTeacher]
    targets: Sequence[Sequence[AlignedTarget]]
    steps_per_epoch: int
    knn: KnnMonitor | None = None
    _outputs: list[Tensor] = field(default_factory=list)

    @property
    def has_images(self) -> bool:
        """Whether there is anything to measure on."""
        return self.held_out is not None or self.config.monitor.knn is not None

    def due(self, epoch: int) -> bool:
        """Whether the students are measured after this many epochs."""
        return self.has_images and (epoch % self.config.monitor.every == 0 or self.judges(epoch))

    def judges(self, epoch: int) -> bool:
        """Whether a run is asked after this many epochs whether it learns: early on, and at its end."""
        return epoch in (first_judged(self.config.epochs, self.steps_per_epoch), self.config.epochs)

    @torch.no_grad()
    def measure(self, learners: Sequence[Learner], *, labelled: bool = True) -> tuple[float, dict[str, float]]:
        """The score that picks the best student (the higher the better), and all that was measured.

        With several students each name carries its number, and the score is their mean.

        Args:
            learners: the students.
            labelled: measure on the labelled folder too, where there is one.
        """
        scores: list[float] = []
        values: dict[str, float] = {}
        for place, learner in enumerate(learners):
            training = learner.training
            learner.eval()
            measured: dict[str, float] = {}
            score = 0.0
            if self.held_out is not None:
                measured |= self._compare(place, learner, self.held_out)
                score = measured[AGREEMENT]
            if labelled and self.config.monitor.knn is not None:
                assert self.knn is not None, "the run was refused without it"
                found = self.knn(learner.backbone, self.config.monitor.knn, self.run)
                measured |= {f"monitor_{name}": value for name, value in found.items()}
                score = next(iter(found.values()))
            scores.append(score)
            learner.train(training)
            end = f"_{place + 1}" if len(learners) > 1 else ""
            values |= {f"{name}{end}": value for name, value in measured.items()}
        return self.run.gather((sum(scores) / len(scores), values))[0]  # one decision for all processes

    def _compare(self, place: int, learner: Learner, files: ImageFiles) -> dict[str, float]:
        """A student beside its teachers on held-out images; over several teachers the means by their weights."""
        self._outputs = self._outputs or [self._pass(files, teacher.backbone, teacher) for teacher in self.teachers]
        pooled = self._pass(files, learner.backbone, learner)
        weights = normalised([net.weight for net in self.config.teacher.each()])
        loss = agreement = 0.0
        for weight, own, output, head in zip(weights, self.targets, self._outputs, learner.heads, strict=True):
            target, prediction = own[place](output.to(self.run.device)), head(pooled.to(self.run.device))
            loss += weight * float(distance(self.config.distance, prediction, target))
            agreement += weight * neighbour_agreement(pooled, output)
        return {
            "held_out_loss": loss,
            AGREEMENT: agreement,
            "effective_rank": effective_rank(pooled),
            "relative_spread": relative_spread(pooled),
        }

    def _pass(self, files: ImageFiles, net: Backbone, answer: Callable[[Tensor], Any]) -> Tensor:
        """The first of every image's answers, in order, in fixed batches over all processes; without broken images."""
        dataset = ImageDataset(files, EvaluationView(net.spec.input), on_broken=self.config.on_broken)
        loader = build_loader(dataset, EvaluationBatches(len(files), _BATCH_SIZE, self.run), 0)
        parts = [(b.indices, answer(b.images.to(self.run.device))[0].float().cpu()) for b in loader if len(b)]
        gathered: list[Any] = [part for one in self.run.gather(parts) for part in one]
        order = torch.cat([indices for indices, _ in gathered]).argsort()
        return torch.cat([values for _, values in gathered])[order]


def normalised(weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1.

    Raises:
        ValueError: none above zero.
    """
    if min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(f"--teacher.weight is {tuple(weights)}: weights must not be negative, nor all zero")
    return [weight / sum(weights) for weight in weights]
