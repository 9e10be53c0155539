"""Fold the batch norms of a frozen backbone into the convolutions before them."""

import copy
from dataclasses import replace
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

    One forward pass finds them, so no family needs rules of its own. The backbone's outputs stay the same up to
    rounding; its state dict has other keys. Where a convolution's output is also used elsewhere (by a skip connection
    from before the norm), folding would change it: the outputs are compared, and such a net is left unchanged.

    Args:
        backbone: any; only its `net` changes.
        example: normalised images; one is enough.

    Returns:
        The number of batch norms that were folded.
    """
    assert not backbone.net.training, "a batch norm is an affine map in eval mode only"
    if not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()):
        return 0
    before = backbone(example)
    original = backbone.net
    backbone.net = copy.deepcopy(original)
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
                replacement: nn.Module = nn.Identity()
                if has_activation(child):
                    replacement = nn.Sequential(child.get_submodule("drop"), child.get_submodule("act"))
                setattr(module, name, replacement)
    after = backbone(example)
    for folded_output, output in zip((after.pooled, *after.maps), (before.pooled, *before.maps), strict=True):
        if not torch.allclose(folded_output, output, rtol=0, atol=_TOLERANCE * float(output.abs().max())):
            backbone.net = original
            return 0
    backbone._opened = replace(backbone._opened, net=backbone.net)  # lets go of the original's weights
    return len(pairs)


def has_activation(module: nn.Module) -> bool:
    """Whether a module is timm's batch norm with an activation; known by its name, as most nets do not need timm."""
    module_type = type(module)
    return module_type.__name__ == "BatchNormAct2d" and module_type.__module__.startswith("timm.")


def find_pairs(backbone: nn.Module, example: Tensor) -> list[tuple[Any, Any]]:
    """Find the pairs of a convolution and the batch norm with fixed statistics that its unchanged output goes into."""
    outputs: dict[int, tuple[nn.Module, Tensor, int]] = {}  # by the id of the output, which is kept alive
    pairs: list[tuple[Any, Any]] = []

    def after_convolution(module: nn.Module, _: object, output: Tensor) -> None:
        outputs[id(output)] = (module, output, output._version)

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        convolution, _, version = outputs.get(id(inputs[0]), (None, None, -1))
        if convolution is not None and version == inputs[0]._version:  # no in-place activation between them
            pairs.append((convolution, module))

    norms = [m for m in backbone.modules() if type(m) is nn.BatchNorm2d or has_activation(m)]
    hooks = [m.register_forward_hook(after_convolution) for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(before_norm) for m in norms if m.running_mean is not None]
    backbone(example)
    for hook in hooks:
        hook.remove()
    uses: dict[int, int] = {}
    for convolution, norm in pairs:
        for module in (convolution, norm):
            uses[id(module)] = uses.get(id(module), 0) + 1
    return [
        pair for pair in pairs if uses[id(pair[0])] == uses[id(pair[1])] == 1
    ]  # no module that is used more than once
