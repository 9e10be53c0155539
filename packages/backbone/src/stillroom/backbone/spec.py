"""The description of a backbone as data: its levels, its input, its licence."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

FeaturePoint = Literal["before", "after"]
"""The pooled feature is read before or after the last activation of the net."""

PERMISSIVE_LICENCES = frozenset(
    {"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "CC0-1.0", "CC-BY-4.0", "Unlicense"}
)
UNKNOWN_LICENCE = "NOASSERTION"  # SPDX's term for "not stated"


@dataclass(frozen=True, kw_only=True)
class Level:
    """One feature map of a backbone: its name in the net, its channels, its stride in input pixels."""

    name: str
    channels: int
    stride: int

    def __str__(self) -> str:
        return f"{self.name} {self.channels}c/{self.stride}"


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The preprocessing a net was trained with, from image to tensor.

    Args:
        size: side of the square input, pixels.
        crop_fraction: `size` over the side the image is resized to before the centre crop, in (0, 1].
        resize: `short side` keeps the aspect ratio and crops the centre; `squash` resizes both sides to `size`.
        interpolation: `bilinear` or `bicubic`.
        antialias: whether downsampling low-pass filters first.
        mean: per channel, in units of `value_range`, in `channel_order`.
        std: likewise.
        channel_order: `rgb` or `bgr`.
        value_range: the values of black and white before mean and std: (0, 1) or (0, 255).
    """

    size: int = 224
    crop_fraction: float = 0.875
    resize: Literal["short side", "squash"] = "short side"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    channel_order: Literal["rgb", "bgr"] = "rgb"
    value_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"input size is {self.size} px: it must be at least 1")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop fraction is {self.crop_fraction}: it must lie in (0, 1]")
        if min(self.std) <= 0:
            raise ValueError(f"input std is {self.std}: every channel must be above 0")
        if not all(map(math.isfinite, (*self.mean, *self.std, *self.value_range))):
            raise ValueError(f"input mean {self.mean}, std {self.std}, values {self.value_range}: all must be finite")
        if self.value_range[0] >= self.value_range[1]:
            raise ValueError(f"input values are {self.value_range}: black must be below white, such as 0 255")

    def __str__(self) -> str:
        resize = f"squashed to {self.size} px"
        if self.resize == "short side":
            resize = f"of the short side at {round(self.size / self.crop_fraction)} px"
        parts = [f"{self.size} px", self.channel_order, f"mean {self.mean}", f"std {self.std}"]
        parts += ["values {:g} to {:g}".format(*self.value_range), f"crop fraction {self.crop_fraction:.4g} {resize}"]
        return ", ".join([*parts, self.interpolation, "antialiased" if self.antialias else "not antialiased"])


@dataclass(frozen=True, kw_only=True)
class Licence:
    """The licence of a set of weights and the restrictions it inherits.

    Args:
        spdx: an SPDX identifier, or `NOASSERTION` if none is stated.
        restrictions: added by teacher and data, one plain phrase each.
    """

    spdx: str = UNKNOWN_LICENCE
    restrictions: tuple[str, ...] = ()

    @property
    def permissive(self) -> bool:
        return set(self.spdx.split(" AND ")) <= PERMISSIVE_LICENCES and not self.restrictions


def inherit_licence(teacher: Licence | None, data_licence: str | None) -> Licence:
    """The licence of weights trained by `teacher` (None: no teacher) on data under `data_licence` (SPDX or words)."""
    restrictions = list(teacher.restrictions) if teacher else []
    if data_licence is not None and data_licence not in PERMISSIVE_LICENCES:
        restrictions.append(f"data: {data_licence}")
    return Licence(spdx=teacher.spdx if teacher else UNKNOWN_LICENCE, restrictions=tuple(dict.fromkeys(restrictions)))


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """Everything needed to rebuild and feed a backbone.

    Args:
        name: `torchvision/resnet18`, `timm/vit_tiny_patch16_224`, `cifar/resnet20`, or `module/<class>` for a user's
            module.
        dim: width of the pooled feature.
        arguments: keyword arguments of the library's constructor, JSON values.
        pre_activation: True if `pooled` is read before the net's last activation. Nets that end in a norm have no
            last activation: before and after are then the same tensor.
        levels: the feature maps, finest first.
        input: how images are prepared.
        licence: of the weights.
    """

    name: str
    dim: int
    arguments: dict[str, Any] = field(default_factory=dict)
    pre_activation: bool = False
    levels: tuple[Level, ...] = ()
    input: InputSpec = field(default_factory=InputSpec)
    licence: Licence = field(default_factory=Licence)

    @property
    def feature(self) -> FeaturePoint:
        """The feature point of `pooled`: `before` or `after` the last activation."""
        return "before" if self.pre_activation else "after"
