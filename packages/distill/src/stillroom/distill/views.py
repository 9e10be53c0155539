"""Training views: random transforms, drawn for each image and epoch, rendered at each net's input size."""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor, nn

from stillroom.backbone.spec import InputSpec
from stillroom.distill.slots import FixedView, KdepView, SameView, StrongView, TeacherView, View, WeakView
from stillroom.images import EvaluationView

# Principal components of ImageNet's RGB pixels in [0, 1] (Krizhevsky et al. 2012, section 4.1; values as published
# with fb.resnet.torch and used ever since).
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_BLUR_SIZE = 224  # pixels at which SimReg's blur is 0.1 to 2 pixels wide


def build_view(view: View, size: int) -> nn.Module:
    """Build the transform of a view: PIL image -> uint8 (3, size, size). It draws from torch's generator.

    The draws do not depend on `size`: from the same state of the generator it renders the same view at any size.
    """
    from torchvision.transforms import v2  # noqa: PLC0415  # slower to import than torch, and not every run needs it

    # PIL's pixels shrink to a tensor first, so that crop and resize are one antialiased step on uint8
    crop = [v2.PILToTensor(), v2.RandomResizedCrop(size, scale=(view.min_scale, 1.0), antialias=True)]
    match view:
        case KdepView():
            colour: list[nn.Module] = [
                v2.ColorJitter(view.jitter, view.jitter, view.jitter),
                Lighting(view.lighting),
            ]
        case WeakView():
            colour = []
        case StrongView():
            width = size / _BLUR_SIZE
            kernel = 2 * max(1, round(3 * 2.0 * width)) + 1  # three standard deviations to each side
            colour = [
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], view.jitter),
                v2.RandomGrayscale(view.grayscale),
                v2.RandomApply([v2.GaussianBlur(kernel, (0.1 * width, 2.0 * width))], view.blur),
            ]
    return v2.Compose([*crop, v2.RandomHorizontalFlip(), *colour])


class Views:
    """The views of one image for all nets of a run: PIL image -> one uint8 (3, s, s) per distinct size and view.

    Args:
        view: the students' view.
        teacher_view: the teachers' view.
        students: the students' input sizes, pixels.
        teachers: the teachers' input specifications; empty where their outputs are cached.

    Attributes:
        of_students, of_teachers: for each net, the index of its rendering.
    """

    def __init__(
        self, view: View, teacher_view: TeacherView, students: Sequence[int], teachers: Sequence[InputSpec]
    ) -> None:
        self._renderings: list[tuple[nn.Module | EvaluationView, bool]] = []  # transform, drawn for teachers only?
        indices: dict[object, int] = {}

        def add(key: object, transform: nn.Module | EvaluationView, independent: bool) -> int:
            if key not in indices:
                indices[key] = len(self._renderings)
                self._renderings.append((transform, independent))
            return indices[key]

        self.of_students = [add(size, build_view(view, size), False) for size in students]
        self.of_teachers: list[int] = []
        for spec in teachers:
            match teacher_view:
                case SameView():
                    self.of_teachers.append(add(spec.size, build_view(view, spec.size), False))
                case FixedView():
                    self.of_teachers.append(add(spec, EvaluationView(spec), True))
                case random_view:
                    self.of_teachers.append(add((random_view, spec.size), build_view(random_view, spec.size), True))

    def __call__(self, image: Image.Image) -> tuple[UInt8[Tensor, "3 _ _"], ...]:
        shared_state = torch.get_rng_state()
        independent_seed = int(torch.randint(2**62, ()))
        rendered = []
        for transform, independent in self._renderings:
            if independent:
                torch.manual_seed(independent_seed)
            else:
                torch.set_rng_state(shared_state)
            rendered.append(transform(image))
        return tuple(rendered)


class Lighting(nn.Module):
    """Add a random colour along the principal components of ImageNet's pixels.

    Args:
        std: standard deviation of the three coefficients.

    Reference: Krizhevsky et al., "ImageNet classification with deep CNNs", NeurIPS 2012, section 4.1.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std
        self.components = torch.tensor(_EIGENVECTORS) * torch.tensor(_EIGENVALUES)

    def forward(self, image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
        colour = self.components @ (torch.randn(3) * self.std)
        return (image + 255 * colour.view(3, 1, 1)).round().clamp(0, 255).to(torch.uint8)
