"""Students in training: the net with its heads, its optimiser, and its form in the training loop."""

import copy
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from stillroom.backbone import Backbone, Normalize, load_backbone, replace_input
from stillroom.backbone.initial import refuse_size
from stillroom.backbone.names import RANDOM, is_checkpoint
from stillroom.backbone.seeds import seed_everything
from stillroom.distill.config import Dense
from stillroom.distill.heads import build_head
from stillroom.distill.nets import Net
from stillroom.distill.slots import AdamW, HeadConfig, Lars, Optimizer, Sgd
from stillroom.distill.teacher import FrozenTeacher
from stillroom.runs import Run
from stillroom.runs.parallel import wrap_ddp


class StudentOutput(NamedTuple):
    """What a student computes of a batch.

    `pooled` is its feature (b, d), `predictions` hold one (b, D) per teacher, `maps` its projected map per teacher,
    empty without a dense term.
    """

    pooled: Tensor
    predictions: list[Tensor]
    maps: list[Tensor]


class StudentModel(nn.Module):
    """A student with one head per teacher.

    Args:
        backbone: the student; only it is saved as a checkpoint's weights.
        heads: (b, d) -> (b, D) for each teacher.
        dense: 1x1 convolutions from the student's level to each teacher's; empty without a dense term.
        level: index of the level that they read.
    """

    def __init__(
        self, backbone: Backbone, heads: Iterable[nn.Module], dense: Iterable[nn.Module] = (), level: int = -1
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.normalize = Normalize(backbone.spec.input)
        self.heads = nn.ModuleList(heads)
        self.dense = nn.ModuleList(dense)
        self.level = level

    @cached_property
    def needs_two_images(self) -> bool:
        """Whether a batch norm sees one value per image and channel, and so cannot train on one image.

        Found by a pass on shapes alone: in a head, on a map of one position, or after the pooling, as in MobileNet-V4.
        """
        side = self.backbone.spec.input.size
        try:
            copy.deepcopy(self).to("meta").train()(torch.zeros(1, 3, side, side, device="meta"))
        except ValueError as error:  # of torch's batch_norm
            if "more than 1 value per channel" not in str(error):
                raise
            return True
        return False

    def forward(self, images: Shaped[Tensor, "b 3 h w"]) -> StudentOutput:
        features = self.backbone(self.normalize(images).contiguous(memory_format=torch.channels_last))
        maps = [project(features.maps[self.level]) for project in self.dense]
        return StudentOutput(features.pooled, [head(features.pooled) for head in self.heads], maps)


def build_student_backbone(net: Net, seed: int) -> Backbone:
    """A student's backbone with its initial weights: random ones of the seed, or those of a checkpoint.

    Raises:
        ValueError: see `load_backbone` and `refuse_size`.
    """
    seed_everything(seed)
    name = net.name if is_checkpoint(net.name) or net.name.startswith(RANDOM) else f"{RANDOM}{net.name}"
    backbone = load_backbone(name).at(net.feature).to(memory_format=torch.channels_last)
    backbone = replace_input(backbone, size=net.size, crop_fraction=net.crop_fraction)
    refuse_size(backbone, backbone.spec.input.size, backbone.spec.input.size, "pass another --student.size")
    return backbone


def build_student(
    backbone: Backbone,
    teachers: Sequence[FrozenTeacher],
    target_dims: Sequence[int],
    *,
    head: HeadConfig,
    dense: Dense,
    seed: int,
) -> StudentModel:
    """Put one head per teacher on a student's backbone.

    Args:
        backbone: the student.
        teachers: all teachers of the run.
        target_dims: width of this student's target from each teacher.
        head: between its feature and each target.
        dense: the term on feature maps.
        seed: of the heads' initial weights.

    Raises:
        ValueError: no head between different widths; a dense term on a level that a net does not have.
    """
    seed_everything(seed, 1)
    heads = [build_head(head, backbone.spec.dim, dim) for dim in target_dims]
    projections = []
    if dense.weight:
        channels = level_channels(backbone, dense.student_level, "--dense.student-level")
        for teacher in teachers:
            teacher_channels = level_channels(teacher.backbone, dense.teacher_level, "--dense.teacher-level")
            projections.append(nn.Conv2d(channels, teacher_channels, 1))
    return StudentModel(backbone, heads, projections, dense.student_level)


def level_channels(backbone: Backbone, level: int, flag: str) -> int:
    """The number of channels of one level of a net.

    Args:
        backbone: the net.
        level: index; negative ones count from the last level.
        flag: that sets it.

    Raises:
        ValueError: the net has no such level.
    """
    levels = backbone.spec.levels
    if not -len(levels) <= level < len(levels):
        raise ValueError(f"{flag} is {level}: {backbone.spec.name} has {len(levels)} levels")
    return levels[level].channels


def build_optimizer(
    config: Optimizer, students: Sequence[nn.Module], *, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """One optimiser of all students and their heads; on a CUDA GPU a step of SGD or AdamW is one fused kernel."""
    parameters = [parameter for student in students for parameter in student.parameters()]
    fused = True if parameters[0].is_cuda else None
    match config:
        case Sgd(momentum=momentum, nesterov=nesterov):
            return torch.optim.SGD(
                parameters, lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=fused
            )
        case AdamW(beta1=beta1, beta2=beta2):
            return torch.optim.AdamW(parameters, lr, (beta1, beta2), weight_decay=weight_decay, fused=fused)
        case Lars(momentum=momentum, trust=trust):
            from timm.optim import Lars as TimmLars  # noqa: PLC0415  # no other optimiser needs timm

            matrices = [parameter for parameter in parameters if parameter.ndim > 1]
            vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
            groups = [
                {"params": matrices, "weight_decay": weight_decay, "always_adapt": True},
                {"params": vectors, "weight_decay": 0.0},  # timm adapts the rate of none of these
            ]
            return TimmLars(groups, lr, momentum=momentum, trust_coeff=trust)


def wrap_student(student: StudentModel, run: Run, sync_batch_norm: bool = False) -> Any:
    """A student as the training loop calls it: in training mode, its gradients averaged over processes.

    Args:
        student: changed in place by `sync_batch_norm`.
        run: this process.
        sync_batch_norm: compute batch-norm statistics over all processes.
    """
    student.train()
    if sync_batch_norm:
        from timm.layers import convert_sync_batchnorm  # noqa: PLC0415  # no other run needs timm

        convert_sync_batchnorm(student)  # timm's: torch's would drop the activation inside a BatchNormAct2d
    return wrap_ddp(student, run)
