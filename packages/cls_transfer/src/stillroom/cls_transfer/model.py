"""A backbone with a classifier on its pooled feature."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.backbone import Backbone


class Classifier(nn.Module):
    """Logits from the pooled feature after the last activation, wherever the backbone was distilled.

    Args:
        backbone: it is read after its last activation.
        head: pooled feature (b, d) -> logits (b, k), for k classes.
        freeze: levels, the finest first, whose weights and batch-norm statistics stay.

    Raises:
        ValueError: `freeze` exceeds the number of levels.
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
        """Set the mode of everything but frozen modules: their batch norms neither use nor update batch statistics."""
        super().train(mode)
        for module in self._frozen:
            module.training = False
        return self

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        return self.head(self.backbone(images.contiguous(memory_format=torch.channels_last)).pooled)


def frozen_modules(net: nn.Module, frozen: set[str]) -> Iterator[nn.Module]:
    """Yield what stays in evaluation mode: owners of frozen parameters, and everything in fully frozen modules.

    The latter includes layers without parameters, such as stochastic depth. A ViT owns its frozen class token itself;
    its other layers stay trainable.
    """
    for name, module in net.named_modules():
        parameters = {f"{name}.{p}" if name else p for p, _ in module.named_parameters()}
        if parameters and parameters <= frozen:
            yield from module.modules()
        elif any(parameter.rpartition(".")[0] == name for parameter in parameters & frozen):
            yield module


def build_layers(dim: int, num_classes: int, hidden: Sequence[int] = ()) -> nn.Sequential:
    """Build a new head: linear layers of these hidden widths, with a ReLU between each two."""
    layers: list[nn.Module] = []
    for width, following in pairwise((dim, *hidden, num_classes)):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def head_tensors(model: Classifier) -> dict[str, Tensor]:
    """The head's tensors by the index of their layer; the names of a single linear layer have no index."""
    tensors = model.head.state_dict()
    return {key.removeprefix("0."): value for key, value in tensors.items()} if len(model.head) == 1 else tensors


def parameters_by_level(backbone: Backbone) -> list[list[str]]:
    """Assign each parameter to the finest level whose map depends on it; those of no level come last.

    They are found by differentiating the maps of a blank image, so this works for any net.
    """
    mode = backbone.training
    device = next(backbone.parameters()).device
    side = backbone.spec.input.size
    names, parameters = zip(*backbone.net.named_parameters(), strict=True)
    requires_grad = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    with torch.enable_grad():
        maps = backbone.eval()(torch.zeros(1, 3, side, side, device=device)).maps
        backbone.train(mode)
        levels: list[list[str]] = []
        seen: set[str] = set()
        for level_map in maps:
            gradients = torch.autograd.grad(level_map.sum(), parameters, retain_graph=True, allow_unused=True)
            new = [name for name, g in zip(names, gradients, strict=True) if g is not None and name not in seen]
            seen.update(new)
            levels.append(new)
    for parameter, flag in zip(parameters, requires_grad, strict=True):
        parameter.requires_grad_(flag)
    return [*levels, [name for name in names if name not in seen]]


def build_groups(model: Classifier, layer_decay: float) -> list[dict[str, object]]:
    """Build an optimiser's parameter groups, each with the `scale` of its learning rate: 1 for the head, less below."""
    if layer_decay == 1:
        return [{"params": [p for p in model.parameters() if p.requires_grad], "scale": 1.0}]
    trainable = {name: p for name, p in model.backbone.net.named_parameters() if p.requires_grad}
    levels = [[name for name in names if name in trainable] for names in parameters_by_level(model.backbone)]
    groups: list[dict[str, object]] = [{"params": list(model.head.parameters()), "scale": 1.0}]
    for depth, names in enumerate([names for names in reversed(levels) if names], start=1):
        groups.append({"params": [trainable[name] for name in names], "scale": layer_decay**depth})
    return groups
