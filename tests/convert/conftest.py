"""Files as other projects write them."""

from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn


def build_library_net(name: str, **arguments: Any) -> nn.Module:
    """A net of torchvision or timm, untouched."""
    library, _, short = name.partition("/")
    if library == "timm":
        return timm.create_model(short, **arguments)
    return torchvision.models.get_model(short, weights=None, **arguments)


def trained(net: nn.Module) -> nn.Module:
    """A net whose norms have seen data, as those of a file do."""
    for name, tensor in net.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.uniform_(-0.3, 0.3)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(7)
    return net.eval().requires_grad_(False)


def write_pth(file: Path, content: Any) -> Path:
    """A pickled file, as training scripts write it."""
    torch.save(content, file)
    return file
