"""Heads on the student's pooled feature; they are dropped after training unless --keep-head is set."""

from torch import nn

from stillroom.distill.slots import HeadConfig, LinearHead, MlpHead, NoHead


def build_head(config: HeadConfig, dim: int, target_dim: int) -> nn.Sequential | nn.Identity:
    """Build the head between a student's feature and a target: (b, dim) -> (b, target_dim).

    SimReg's four layers are Linear(d, 2d) - BN - ReLU - Linear(2d, d) - Linear(d, 2d) - BN - ReLU - Linear(2d, D),
    with nothing after the second; its linear head is BN(d) - Linear(d, D). KDEP's 1x1 convolution of a pooled feature
    is Linear(d, D) - BN(D).

    Args:
        config: settings of the head.
        dim: d, the student's width.
        target_dim: D.

    Raises:
        ValueError: no head between different widths.

    Reference: SimReg (Navaneet et al., BMVC 2021), section 3, and its released code; KDEP (He et al., CVPR 2022),
    section 4.1.
    """
    match config:
        case NoHead():
            if dim != target_dim:
                raise ValueError(
                    f"the student is {dim}-d, the target {target_dim}-d and there is no head between them: choose a "
                    f"head (head:linear-head, head:mlp-head) or pass --alignment.dim {dim}"
                )
            return nn.Identity()
        case LinearHead(batch_norm="before"):
            return nn.Sequential(nn.BatchNorm1d(dim), nn.Linear(dim, target_dim))
        case LinearHead(batch_norm="after"):
            return nn.Sequential(nn.Linear(dim, target_dim), nn.BatchNorm1d(target_dim))
        case LinearHead():
            return nn.Sequential(nn.Linear(dim, target_dim))
        case MlpHead(layers=2, as_released=True):
            return nn.Sequential(nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, target_dim))
        case MlpHead(layers=2):
            return nn.Sequential(*_widen(dim), nn.Linear(2 * dim, target_dim))
        case MlpHead():
            return nn.Sequential(*_widen(dim), nn.Linear(2 * dim, dim), *_widen(dim), nn.Linear(2 * dim, target_dim))


def _widen(dim: int) -> list[nn.Module]:
    return [nn.Linear(dim, 2 * dim), nn.BatchNorm1d(2 * dim), nn.ReLU()]
