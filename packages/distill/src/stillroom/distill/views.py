"""What the nets see in training: views, drawn anew for each image and epoch."""

from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

# Principal components of ImageNet's RGB pixels in [0, 1] (Krizhevsky et al. 2012, section 4.1; values as published
# with fb.resnet.torch and used ever since).
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


@dataclass(frozen=True, kw_only=True)
class KdepView:
    """One view for teacher and student: random crop, flip, colour jitter, PCA lighting.

    Reference: KDEP's released recipe (RandomResizedCrop 0.08-1, jitter 0.1, lighting 0.05).
    """

    min_scale: float = 0.08
    """Smallest crop, fraction of the image's area. For small images, or few, take 0.35."""
    jitter: float = 0.1
    """Brightness, contrast and saturation change by up to this fraction."""
    lighting: float = 0.05
    """Standard deviation of the PCA lighting noise."""


class KdepTransform:
    """The view that a `KdepView` describes: PIL image -> uint8 (3, size, size). Draws from torch's generator."""

    def __init__(self, view: KdepView, size: int) -> None:
        self.steps = v2.Compose(
            [
                v2.PILToTensor(),
                v2.RandomResizedCrop(size, scale=(view.min_scale, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(view.jitter, view.jitter, view.jitter),
                Lighting(view.lighting),
            ]
        )

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 s s"]:
        return self.steps(image)


class Lighting(nn.Module):
    """Add a random colour along the principal components of ImageNet's pixels.

    Args:
        std: of the three coefficients.

    Reference: Krizhevsky et al., "ImageNet classification with deep CNNs", NeurIPS 2012, section 4.1.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std
        self.components = torch.tensor(_EIGENVECTORS) * torch.tensor(_EIGENVALUES)

    def forward(self, image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
        colour = self.components @ (torch.randn(3) * self.std)
        return (image + 255 * colour.view(3, 1, 1)).round().clamp(0, 255).to(torch.uint8)
