"""A backbone with a classifier on its pooled feature."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.backbone import Backbone


class Classifier(nn.Module):
    """Logits from the pooled feature behind the last activation, wherever the backbone was distilled.

    Args:
        backbone: read after its last activation from here on.
        head: pooled feature (b, d) -> logits (b, k).
        freeze: levels, the finest first, whose weights and batch-norm statistics stay.

    Raises:
        ValueError: more levels than the backbone has.
    """

    def __init__(self, backbone: Backbone, head: nn.Sequential, *, freeze: int = 0) -> None:
        super().__init__()
        self.backbone = backbone.at("after").to(memory_format=torch.channels_last)  # as distill feeds it
        self.head = head
        if not 0 <= freeze <= len(backbone.spec.levels):
            raise ValueError(f"--freeze is {freeze}: {backbone.spec.name} has {len(backbone.spec.levels)} levels")
        frozen = {name for names in parameters_by_level(backbone)[:freeze] for name in names} if freeze else set()
        for name, parameter in backbone.net.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self._frozen = list(frozen_modules(backbone.net, frozen))

    def train(self, mode: bool = True) -> "Classifier":
        """Training mode for all but what is frozen: its batch norms neither use nor count a batch's statistics."""
        super().train(mode)
        for module in self._frozen:
            module.training = False
        return self

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        return self.head(self.backbone(images.contiguous(memory_format=torch.channels_last)).pooled)


def frozen_modules(net: nn.Module, frozen: set[str]) -> Iterator[nn.Module]:
    """What stays in evaluation mode: owners of frozen parameters, and all that lies in a module with no others.

    The second are layers without parameters, such as stochastic depth; a ViT itself owns its frozen class token and
    goes on.
    """
    for name, module in net.named_modules():
        own = {f"{name}.{p}" if name else p for p, _ in module.named_parameters()}
        if own and own <= frozen:
            yield from module.modules()
        elif any(parameter.rpartition(".")[0] == name for parameter in own & frozen):
            yield module


def build_layers(dim: int, num_classes: int, hidden: Sequence[int] = ()) -> nn.Sequential:
    """A new head: linear layers of these widths, with a ReLU between each two."""
    layers: list[nn.Module] = []
    for width, following in pairwise((dim, *hidden, num_classes)):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def parameters_by_level(backbone: Backbone) -> list[list[str]]:
    """The parameters of each level: those that its map depends on and no finer one's does; last those of no level.

    Found by differentiating the maps of a blank image, so it holds for any net.
    """
    mode = backbone.training
    device = next(backbone.parameters()).device
    side = backbone.spec.input.size
    names, parameters = zip(*backbone.net.named_parameters(), strict=True)
    learns = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    with torch.enable_grad():
        maps = backbone.eval()(torch.zeros(1, 3, side, side, device=device)).maps
        backbone.train(mode)
        found: list[list[str]] = []
        seen: set[str] = set()
        for one in maps:
            gradients = torch.autograd.grad(one.sum(), parameters, retain_graph=True, allow_unused=True)
            own = [name for name, g in zip(names, gradients, strict=True) if g is not None and name not in seen]
            seen.update(own)
            found.append(own)
    for parameter, flag in zip(parameters, learns, strict=True):
        parameter.requires_grad_(flag)
    return [*found, [name for name in names if name not in seen]]


def build_groups(model: Classifier, layer_decay: float) -> list[dict[str, object]]:
    """Parameter groups for an optimiser, each with its `scale` of the learning rate: 1 for the head, less below it."""
    if layer_decay == 1:
        return [{"params": [p for p in model.parameters() if p.requires_grad], "scale": 1.0}]
    learn = {name: p for name, p in model.backbone.net.named_parameters() if p.requires_grad}
    levels = [[name for name in names if name in learn] for names in parameters_by_level(model.backbone)]
    groups: list[dict[str, object]] = [{"params": list(model.head.parameters()), "scale": 1.0}]
    for depth, names in enumerate([names for names in reversed(levels) if names], start=1):
        groups.append({"params": [learn[name] for name in names], "scale": layer_decay**depth})
    return groups
