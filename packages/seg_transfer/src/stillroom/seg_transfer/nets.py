"""Backbones as MMSegmentation sees them: its own ResNet and MobileNetV2 with exact dilation, and any net of ours."""

from collections.abc import Sequence
from typing import Any, Literal, cast

from mmengine.model import BaseModule
from mmseg.models.backbones import MobileNetV2, ResNet
from mmseg.registry import MODELS
from torch import Tensor, nn

from stillroom.backbone import build_backbone

Atrous = Literal["exact", "second"]
"""`exact`: each convolution sees the pixels it saw before the strides were taken out. `second`: as KDEP's PSPNet of
ResNet-18, where only the second convolution of each block is dilated."""


def dilate(stages: Sequence[nn.Module], stride: int, output_stride: int) -> None:
    """Take the strides beyond `output_stride` out of a net, and dilate what follows, so that features stay the same.

    A convolution whose stride is taken out keeps its rate, all later ones are dilated by that stride more: every output
    pixel at a position of the strided net has the value it had there.

    Args:
        stages: of the net, in forward order; their convolutions are changed in place.
        stride: of the first stage's input, pixels.
        output_stride: of the last stage's output.

    Reference: Chen et al., DeepLab (TPAMI 2018), section 3.1; timm's `output_stride` gives the same nets.
    """
    rate = 1
    for stage in stages:
        convolutions = [m for m in stage.modules() if isinstance(m, nn.Conv2d)]
        own = max(c.stride[0] for c in convolutions)
        keep = stride * own <= output_stride
        stride *= own if keep else 1
        for convolution in convolutions:
            side = convolution.kernel_size[0]
            strided = convolution.stride[0] > 1
            if side > 1:
                convolution.dilation = (rate, rate)
                convolution.padding = (rate * (side // 2),) * 2
            if strided and not keep:
                convolution.stride = (1, 1)
                rate *= own if side > 1 else 1  # the shortcut's 1x1 convolution leaves its stride with the block's


def dilate_second(stages: Sequence[nn.Module], output_stride: int) -> None:
    """KDEP's PSPNet of ResNet-18 at stride 8: the last two stages without strides, conv2 of their blocks at 2 and 4."""
    assert output_stride == 8, "refused before"
    for stage, rate in zip(stages[2:], (2, 4), strict=True):
        for name, convolution in stage.named_modules():
            if isinstance(convolution, nn.Conv2d):
                convolution.stride = (1, 1)
                if name.endswith("conv2"):
                    convolution.dilation = convolution.padding = (rate, rate)


class Freezable(nn.Module):
    """A net that may keep its first weights: `frozen` holds it in evaluation mode, without gradients."""

    frozen = False

    def train(self, mode: bool = True) -> "Freezable":
        """Weights that are kept need no batch statistics either."""
        super().train(mode and not self.frozen)
        return self


@MODELS.register_module()
class StillroomResNet(Freezable, ResNet):
    """MMSegmentation's ResNet, dilated exactly: its own BasicBlock leaves the second convolution at rate 1.

    Args:
        output_stride: 8, 16 or 32.
        atrous: how strides are taken out.
        frozen: keep all weights and statistics.
        arguments: of MMSegmentation's ResNet.
    """

    def __init__(
        self, *, output_stride: int = 32, atrous: Atrous = "exact", frozen: bool = False, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.frozen = frozen
        stages = [self.get_submodule(name) for name in cast(list[str], self.res_layers)]
        if atrous == "second":
            dilate_second(stages, output_stride)
        else:
            dilate(stages, 4, output_stride)
        self.requires_grad_(not frozen)


@MODELS.register_module()
class StillroomResNetV1c(StillroomResNet):
    """The same with the deep stem of three 3x3 convolutions."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(deep_stem=True, **arguments)


@MODELS.register_module()
class StillroomMobileNetV2(Freezable, MobileNetV2):
    """MMSegmentation's MobileNetV2, dilated exactly: its own dilates the first block of each stage alone.

    Args:
        output_stride: 8, 16 or 32.
        frozen: keep all weights and statistics.
        arguments: of MMSegmentation's MobileNetV2.
    """

    def __init__(self, *, output_stride: int = 32, frozen: bool = False, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.frozen = frozen
        dilate([self.get_submodule(name) for name in cast(list[str], self.layers)], 2, output_stride)
        self.requires_grad_(not frozen)


@MODELS.register_module()
class StillroomBackbone(Freezable, BaseModule):
    """Any backbone of ours as a backbone of MMSegmentation: images (b, 3, h, w) -> its levels, finest first.

    Args:
        name: as `build_backbone` takes it.
        arguments: of the library's constructor; timm's CNNs dilate by `output_stride`.
        frozen: keep all weights and statistics.
        init_cfg: of MMEngine, where first weights come from.
    """

    def __init__(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        frozen: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.frozen = frozen
        self.net = build_backbone(name, arguments=dict(arguments or {}))
        self.requires_grad_(not frozen)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.net(images).maps
