"""Frozen backbones, or frozen batch norms in them, and batch norms that are synchronised over processes."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from stillroom.det_transfer.config import DetectConfig

FrozenPart = Literal["nothing", "norms", "all"]


def frozen_part(config: DetectConfig) -> FrozenPart:
    """The part of its backbone that a run freezes."""
    return "all" if config.frozen else "norms" if config.norm == "frozen" else "nothing"


def freeze(net: nn.Module, part: FrozenPart) -> None:
    """Put a part of a net in evaluation mode and stop its gradients, in place.

    Args:
        net: in training mode, which its `train` would bring back; see `FreezableModule`.
        part: norms are the batch norms, both statistics and affine weights.
    """
    for module in {"nothing": [], "norms": batch_norms(net), "all": [*net.children()]}[part]:
        module.eval()
        module.requires_grad_(False)


class FreezableModule(nn.Module):
    """A module that freezes a part of itself each time it is put in training mode.

    Args:
        freeze: the part.
    """

    def __init__(self, freeze: FrozenPart) -> None:
        super().__init__()
        self.frozen_part = freeze

    def train(self, mode: bool = True) -> "FreezableModule":
        """Set the mode; the frozen part stays in evaluation mode and without gradients."""
        super().train(mode)
        freeze(self, self.frozen_part)
        return self


def batch_norms(net: nn.Module) -> Sequence[Any]:
    """The batch norms of a net, including timm's with an activation inside."""
    return [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def sync_norms(net: nn.Module) -> None:
    """Convert the batch norms of a net to SyncBatchNorm, whose statistics are over all processes, in place."""
    from timm.layers import convert_sync_batchnorm  # noqa: PLC0415  # no other run needs timm

    convert_sync_batchnorm(net)  # timm's: torch's would drop the activation inside a BatchNormAct2d
