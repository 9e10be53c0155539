"""Features to classify, for tests of classifiers."""

import torch
from torch import Tensor


def clouds(count: int = 300, dim: int = 12, num_classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(num_classes, (count,), generator=generator)
    return centres[labels] + torch.randn(count, dim, generator=generator), labels
