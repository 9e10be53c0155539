"""`Backbone`: one interface for every net, from images to pooled feature and feature maps."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.backbone.spec import BackboneSpec, FeaturePoint, Level


@dataclass(frozen=True)
class Features:
    """The output of a backbone for a batch: `pooled` (b, d) and `maps`, one (b, c, h, w) per level, finest first.

    `class_token` (b, c) exists for nets that have one (ViTs); it is normed as the maps of the last level are.
    """

    pooled: Float[Tensor, "b d"]
    maps: tuple[Tensor, ...]
    class_token: Float[Tensor, "b c"] | None = None


Trunk = Callable[[Any, Tensor], tuple[list[Tensor], Tensor]]


def run_modules(names: Sequence[str], taken: Sequence[str]) -> Trunk:
    """A trunk that runs a net's modules in order, by name; the outputs of `taken` are the maps."""

    def trunk(net: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
        x, maps = images, []
        for name in names:
            x = net.get_submodule(name)(x)
            if name in taken:
                maps.append(x)
        return maps, x

    return trunk


@dataclass(frozen=True, kw_only=True)
class OpenedNet:
    """A net and how to run it in parts. Its last activation, which has no weights, has been taken out.

    Args:
        net: the library's module, its classifier removed, state-dict keys unchanged.
        dim: width of the pooled feature.
        levels: the maps that `trunk` returns, finest first.
        trunk: (net, images) -> (maps, tail); `tail` is the last tensor before the last activation.
        pool: (net, tail) -> pooled (b, d).
        last_activation: what was taken out; None for nets that end in a norm.
        last_map_is_tail: the last level is the tail itself (ResNet), not a map before it (MobileNet-V2).
        activation_follows_pool: MobileNet-V3 pools first and activates the vector.
        has_class_token: the tail is (b, tokens, c) and its first token is the class token.
    """

    net: nn.Module
    dim: int
    levels: tuple[Level, ...]
    trunk: Trunk
    pool: Callable[[Any, Tensor], Tensor] = lambda _, tail: tail.mean(dim=(2, 3))  # over all pixels, as most CNNs
    last_activation: nn.Module | None = None
    last_map_is_tail: bool = False
    activation_follows_pool: bool = False
    has_class_token: bool = False


class Backbone(nn.Module):
    """A net without its classifier, and everything needed to feed and store it.

    `backbone(images)` takes normalised float images (b, 3, h, w) (`Normalize(spec.input)` makes them) and returns
    `Features`. `maps` are always after the activation. `pooled` is read at the feature point:

    - ResNet, ResNeXt, RegNet: before or after the ReLU that follows the last block's addition, then averaged;
    - MobileNet-V2, EfficientNet: before or after the ReLU6 / SiLU of the last 1x1 convolution, then averaged;
    - timm's MobileNet-V3 and V4 pool first: before or after the activation of the convolution after the pooling;
    - ViT, Swin, ConvNeXt end in a norm: both points are the same tensor, timm's `forward_head(pre_logits=True)`.

    Args:
        opened: the net and how to run it, from `stillroom.backbone.families`.
        spec: its description, stored in a checkpoint.

    Reference: KDEP (He et al., CVPR 2022), section 3.2, reads features before the last ReLU.
    """

    def __init__(self, opened: OpenedNet, spec: BackboneSpec) -> None:
        super().__init__()
        assert opened.dim == spec.dim and opened.levels == spec.levels
        self.net = opened.net
        self.last_activation = opened.last_activation
        self.spec = spec
        self._opened = opened
        self.has_class_token = opened.has_class_token

    @classmethod
    def from_module(cls, module: nn.Module, spec: BackboneSpec, last_activation: nn.Module | None = None) -> "Backbone":
        """Wrap any module as a backbone, for instance as a teacher.

        Args:
            module: images (b, 3, h, w) -> pooled feature (b, d), or a map (b, d, h, w) that is then averaged. With
                levels in the spec: -> (list of maps after their activations, that tensor).
            spec: its `name` is `module/<class>`; `pre_activation` says what the module returns.
            last_activation: if passed, the module must return the tensor before it, and both feature points exist.

        Raises:
            ValueError: another name; at the first forward, an output whose shape does not fit the spec.
        """
        if not spec.name.startswith("module/"):
            raise ValueError(f"{spec.name!r} is not the name of your own net: name it module/{type(module).__name__}")

        def trunk(net: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
            output = net(images)
            maps, tail = output if spec.levels else ([], output)
            return list(maps), tail

        def pool(net: nn.Module, tail: Tensor) -> Tensor:
            pooled = tail.mean(dim=(2, 3)) if tail.ndim == 4 else tail
            if pooled.ndim != 2 or pooled.shape[1] != spec.dim:
                raise ValueError(
                    f"{spec.name} returned a tensor of shape {tuple(tail.shape)}: "
                    f"expected (b, {spec.dim}) or (b, {spec.dim}, h, w)"
                )
            return pooled

        opened = OpenedNet(
            net=module, dim=spec.dim, levels=spec.levels, trunk=trunk, pool=pool, last_activation=last_activation
        )
        return cls(opened, spec)

    def at(self, feature: FeaturePoint | None) -> "Backbone":
        """Return the net (shared) with this feature point; ValueError if a module of the user has only the other."""
        if feature in (None, self.spec.feature):
            return self
        if self.spec.name.startswith("module/") and self.last_activation is None:
            raise ValueError(
                f"{self.spec.name} returns its feature {self.spec.feature} the last activation: "
                f"for `{feature}` pass last_activation to Backbone.from_module"
            )
        twin = copy.copy(self)
        twin.spec = replace(self.spec, pre_activation=feature == "before")
        return twin

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Features:
        maps, tail = self._opened.trunk(self.net, images)
        if self.last_activation is None:
            class_token = tail[:, 0] if self.has_class_token else None
            return Features(self._opened.pool(self.net, tail), tuple(maps), class_token)
        if self._opened.activation_follows_pool:
            pooled = self._opened.pool(self.net, tail)
            return Features(pooled if self.spec.pre_activation else self.last_activation(pooled), tuple(maps))
        activated = self.last_activation(tail)
        if self._opened.last_map_is_tail:
            maps = [*maps[:-1], activated]
        return Features(self._opened.pool(self.net, tail if self.spec.pre_activation else activated), tuple(maps))


def weights_sha256(net: nn.Module) -> str:
    """The hash of a net's parameters and buffers: names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
