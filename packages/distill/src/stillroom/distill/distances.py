"""Distances of predictions from targets, and the loss that they add up to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity, kl_div, log_softmax, mse_loss, softmax

from stillroom.distill.config import Dense
from stillroom.distill.slots import CosineDistance, Distance, KlDivergence, Mse
from stillroom.distill.student import StudentOutput


def distance(config: Distance, prediction: Float[Tensor, "b d"], target: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Compute the mean distance over a batch, in float32.

    - MSE: mean over batch and dimensions of (p - t)^2 (KDEP, section 3.2);
    - cosine: mean over the batch of 2 - 2 <p, t> / (|p| |t|), the squared distance of unit vectors (SimReg, eq. 1);
    - KL: T^2 times the mean over the batch of sum_k q_k (log q_k - log r_k), q and r the softmax of t / T and p / T.

    Reference: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, for T^2 and the last one.
    """
    prediction, target = prediction.float(), target.float()
    match config:
        case Mse():
            return mse_loss(prediction, target)
        case CosineDistance():
            return (2 - 2 * cosine_similarity(prediction, target, dim=1)).mean()
        case KlDivergence(temperature=t):
            return t**2 * kl_div(log_softmax(prediction / t, 1), softmax(target / t, 1), reduction="batchmean")


def dense_distance(prediction: Float[Tensor, "b c _ _"], target: Float[Tensor, "b c _ _"]) -> Float[Tensor, ""]:
    """2 - 2 cos between two maps, averaged over the positions of a common grid: per axis, the coarser of the two.

    Reference: the pixel-wise form of SimReg's distance; compare Wang et al., "Dense Contrastive Learning", CVPR 2021.
    """
    grid = (min(prediction.shape[2], target.shape[2]), min(prediction.shape[3], target.shape[3]))
    student_map, teacher_map = (adaptive_avg_pool2d(m.float(), grid) for m in (prediction, target))
    return (2 - 2 * cosine_similarity(student_map, teacher_map, dim=1)).mean()


class StepLoss(NamedTuple):
    """The loss of a step: `total` is differentiated, `logged` are the scalars to log."""

    total: Tensor
    logged: dict[str, Tensor]


@dataclass(frozen=True)
class DistillationLoss:
    """The weighted sum of distances that all students minimise together.

    Each student's summand is the loss it would have alone: students share nothing but the teachers.

    Args:
        distance: between predictions and targets.
        weight: of these distances.
        dense: the term on feature maps and its weight.
        teacher_weights: of each teacher's loss, summing to 1.
    """

    distance: Distance
    weight: float
    dense: Dense
    teacher_weights: Sequence[float]

    def __call__(
        self,
        students: Sequence[StudentOutput],
        targets: Sequence[Sequence[Tensor]],
        teacher_maps: Sequence[Sequence[Tensor]],
    ) -> StepLoss:
        """The loss of a batch.

        Args:
            students: the output of each.
            targets: per teacher, each student's target.
            teacher_maps: per teacher, its feature maps; used by the dense term only.

        Returns:
            The sum to differentiate, and as scalars to log `loss`, the distance to the target averaged over teachers
            (by weight) and students; with several students also `loss_1` and so on, one per student; with a dense term
            also its mean, `dense_loss`.
        """
        distances: list[Tensor] = []
        dense_distances: list[Tensor] = []
        for index, student in enumerate(students):
            terms = [
                weight * distance(self.distance, prediction, target[index])
                for weight, prediction, target in zip(self.teacher_weights, student.predictions, targets, strict=True)
            ]
            distances.append(torch.stack(terms).sum())
            if student.maps:
                terms = [
                    weight * dense_distance(projected, maps[self.dense.teacher_level])
                    for weight, projected, maps in zip(self.teacher_weights, student.maps, teacher_maps, strict=True)
                ]
                dense_distances.append(torch.stack(terms).sum())
        logged = {"loss": torch.stack(distances).mean()}
        total = self.weight * torch.stack(distances).sum()
        if len(distances) > 1:
            logged |= {f"loss_{number}": value for number, value in enumerate(distances, start=1)}
        if dense_distances:
            logged["dense_loss"] = torch.stack(dense_distances).mean()
            total = total + self.dense.weight * torch.stack(dense_distances).sum()
        return StepLoss(total, logged)
