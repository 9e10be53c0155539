"""Students in training: the net, its heads, its optimiser, its running average."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stillroom.backbone import Backbone, Normalize, load_backbone, replace_input
from stillroom.backbone.names import RANDOM, is_checkpoint
from stillroom.backbone.run import seed_everything
from stillroom.distill.config import DistillConfig, Net
from stillroom.distill.heads import build_head
from stillroom.distill.slots import AdamW, Lars, Sgd
from stillroom.distill.teacher import FrozenTeacher


class Learner(nn.Module):
    """A student with one head per teacher: pixels -> pooled feature, predictions, maps for the dense term.

    Args:
        backbone: the student; it alone leaves.
        heads: (b, d) -> (b, D) for each teacher.
        dense: 1x1 convolutions from the student's level to each teacher's; empty without the dense term.
        level: which level they read.
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

    def forward(self, images: Shaped[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b d"], list[Tensor], list[Tensor]]:
        features = self.backbone(self.normalize(images).contiguous(memory_format=torch.channels_last))
        maps = [project(features.maps[self.level]) for project in self.dense]
        return features.pooled, [head(features.pooled) for head in self.heads], maps


def build_student(net: Net, seed: int) -> Backbone:
    """A student with its first weights: random ones from the seed, or those of a checkpoint."""
    seed_everything(seed)
    name = net.name if is_checkpoint(net.name) or net.name.startswith(RANDOM) else f"{RANDOM}{net.name}"
    student = load_backbone(name).at(net.feature).to(memory_format=torch.channels_last)
    return replace_input(student, size=net.size, crop_fraction=net.crop_fraction)


def build_learner(
    config: DistillConfig, backbone: Backbone, teachers: Sequence[FrozenTeacher], target_dims: Sequence[int]
) -> Learner:
    """A student with the heads that the config asks for, drawn from the seed.

    Raises:
        ValueError: no head between different widths; a dense term on nets without maps.
    """
    seed_everything(config.seed, 1)
    heads = [build_head(config.head, backbone.spec.dim, dim) for dim in target_dims]
    dense = []
    if config.dense.weight:
        level = pick_level(backbone, config.dense.student_level, "--dense.student-level")
        for teacher in teachers:
            theirs = pick_level(teacher.backbone, config.dense.teacher_level, "--dense.teacher-level")
            dense.append(nn.Conv2d(level, theirs, 1))
    return Learner(backbone, heads, dense, config.dense.student_level)


def pick_level(backbone: Backbone, level: int, flag: str) -> int:
    """The channels of one level of a net.

    Raises:
        ValueError: the net has no such level.
    """
    levels = backbone.spec.levels
    if not -len(levels) <= level < len(levels):
        raise ValueError(f"{flag} is {level}: {backbone.spec.name} has {len(levels)} levels")
    return levels[level].channels


def build_optimizer(config: DistillConfig, learners: Sequence[nn.Module]) -> torch.optim.Optimizer:
    """The optimiser of all students and heads."""
    parameters = [parameter for learner in learners for parameter in learner.parameters()]
    match config.optimizer:
        case Sgd(momentum=momentum, nesterov=nesterov):
            return torch.optim.SGD(
                parameters, config.lr, momentum=momentum, nesterov=nesterov, weight_decay=config.weight_decay
            )
        case AdamW(beta1=beta1, beta2=beta2):
            return torch.optim.AdamW(parameters, config.lr, (beta1, beta2), weight_decay=config.weight_decay)
        case Lars(momentum=momentum, trust=trust):
            from timm.optim import Lars as TimmLars  # noqa: PLC0415  # no other optimiser needs timm

            groups = [
                {
                    "params": [p for p in parameters if p.ndim > 1],
                    "weight_decay": config.weight_decay,
                    "always_adapt": True,
                },
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},  # timm adapts none of these
            ]
            return TimmLars(groups, config.lr, momentum=momentum, trust_coeff=trust)


def build_average(learner: Learner, decay: float) -> AveragedModel | None:
    """The exponential moving average of a student, buffers included; None for decay 0."""
    if not decay:
        return None
    return AveragedModel(learner, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
