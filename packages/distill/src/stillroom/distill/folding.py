"""A frozen backbone without its batch norms: each is folded into the convolution in front of it."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from stillroom.backbone import Backbone

_TOLERANCE = 1e-3  # of the largest value; float32 rounding over a hundred layers stays below a tenth of it


@torch.no_grad()
def fold_batch_norms(backbone: Backbone, example: Float[Tensor, "b 3 h w"]) -> int:
    """Fold, in place, every batch norm whose input is a convolution's output; the backbone must be in eval mode.

    Which ones those are is seen in one forward pass, so no family needs rules of its own. The backbone then says what
    it said, but for rounding, and its state dict has other keys. Where a convolution's output also goes elsewhere (to a
    skip from before the norm), folding would change that: a comparison finds it, and the net is left as it is.

    Args:
        backbone: any; only its `net` changes.
        example: normalised images, one will do.

    Returns:
        How many batch norms were folded.
    """
    assert not backbone.net.training, "a batch norm is an affine map in eval mode only"
    if not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()):
        return 0
    before = backbone(example)
    whole = backbone.net
    backbone.net = copy.deepcopy(whole)
    pairs = find_pairs(backbone, example)
    for convolution, norm in pairs:
        weight, bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        convolution.weight, convolution.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
    folded = {id(norm) for _, norm in pairs}
    for module in list(backbone.net.modules()):
        for name, child in module.named_children():
            if id(child) in folded:
                rest: nn.Module = nn.Identity()
                if has_activation(child):
                    rest = nn.Sequential(child.get_submodule("drop"), child.get_submodule("act"))
                setattr(module, name, rest)
    after = backbone(example)
    for ours, theirs in zip((after.pooled, *after.maps), (before.pooled, *before.maps), strict=True):
        if not torch.allclose(ours, theirs, rtol=0, atol=_TOLERANCE * float(theirs.abs().max())):
            backbone.net = whole
            return 0
    return len(pairs)


def has_activation(module: nn.Module) -> bool:
    """Whether a module is timm's batch norm with an activation in it; by its name, for most nets need no timm."""
    kind = type(module)
    return kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm.")


def find_pairs(backbone: nn.Module, example: Tensor) -> list[tuple[Any, Any]]:
    """The convolutions whose output goes, unchanged, into a batch norm with fixed statistics, each with it."""
    said: dict[int, tuple[nn.Module, Tensor, int]] = {}  # by the identity of the output, which is kept alive
    pairs: list[tuple[Any, Any]] = []

    def convolved(module: nn.Module, _: object, output: Tensor) -> None:
        said[id(output)] = (module, output, output._version)

    def normed(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        convolution, _, version = said.get(id(given[0]), (None, None, -1))
        if convolution is not None and version == given[0]._version:  # no in-place activation between them
            pairs.append((convolution, module))

    norms = [m for m in backbone.modules() if type(m) is nn.BatchNorm2d or has_activation(m)]
    hooks = [m.register_forward_hook(convolved) for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(normed) for m in norms if m.running_mean is not None]
    backbone(example)
    for hook in hooks:
        hook.remove()
    uses: dict[int, int] = {}
    for convolution, norm in pairs:
        for module in (convolution, norm):
            uses[id(module)] = uses.get(id(module), 0) + 1
    return [pair for pair in pairs if uses[id(pair[0])] == uses[id(pair[1])] == 1]  # no module that is used twice
