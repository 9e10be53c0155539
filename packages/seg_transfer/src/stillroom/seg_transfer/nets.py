"""Backbones for MMSegmentation: its ResNet and MobileNetV2 with exact dilation, and a wrapper of any net of ours."""

from collections.abc import Sequence
from types import MethodType
from typing import Any, Literal, cast

from mmengine.model import BaseModule
from mmseg.models.backbones import MobileNetV2, ResNet
from mmseg.registry import MODELS
from torch import Tensor, nn

from stillroom.backbone import build_backbone

Atrous = Literal["exact", "second"]
"""`exact`: each convolution sees the pixels that it saw before the strides were removed. `second`: as in KDEP's PSPNet
of ResNet-18, where only the second convolution of each block is dilated."""


def dilate(stages: Sequence[nn.Module], stride: int, output_stride: int) -> None:
    """Remove the strides beyond `output_stride` from a net, and dilate what follows, so that features stay the same.

    A convolution whose stride is removed keeps its rate; all later ones are dilated by that stride more. Every output
    pixel at a position of the strided net has the value that it had there.

    Args:
        stages: of the net, in forward order; their convolutions are changed in place.
        stride: of the first stage's input, pixels.
        output_stride: of the last stage's output.

    Reference: Chen et al., DeepLab (TPAMI 2018), section 3.1; timm's `output_stride` gives the same nets.
    """
    rate = 1
    for stage in stages:
        convolutions = [m for m in stage.modules() if isinstance(m, nn.Conv2d)]
        stage_stride = max(c.stride[0] for c in convolutions)
        keep = stride * stage_stride <= output_stride
        stride *= stage_stride if keep else 1
        for convolution in convolutions:
            side = convolution.kernel_size[0]
            strided = convolution.stride[0] > 1
            if side > 1:
                convolution.dilation = (rate, rate)
                convolution.padding = (rate * (side // 2),) * 2
            if strided and not keep:
                convolution.stride = (1, 1)
                rate *= stage_stride if side > 1 else 1  # once per block: its 1x1 shortcut has the same stride


def dilate_second(stages: Sequence[nn.Module], output_stride: int) -> None:
    """Dilate as KDEP's PSPNet of ResNet-18: no strides in the last two stages, conv2 at rates 2 and 4."""
    assert output_stride == 8, "refused before"
    for stage, rate in zip(stages[2:], (2, 4), strict=True):
        for name, convolution in stage.named_modules():
            if isinstance(convolution, nn.Conv2d):
                convolution.stride = (1, 1)
                if name.endswith("conv2"):
                    convolution.dilation = convolution.padding = (rate, rate)


def freeze(net: nn.Module) -> None:
    """Freeze a net: no gradients, and evaluation mode whatever mode the model around it is set to."""
    net.requires_grad_(False).eval()
    net.train = MethodType(lambda self, mode=True: self, net)  # type: ignore[method-assign]


@MODELS.register_module()
class StillroomResNet(ResNet):
    """MMSegmentation's ResNet, dilated exactly; its own BasicBlock leaves the second convolution at rate 1.

    Args:
        output_stride: 8, 16 or 32.
        atrous: see `Atrous`.
        frozen: see `freeze`.
        arguments: of MMSegmentation's ResNet.
    """

    def __init__(
        self, *, output_stride: int = 32, atrous: Atrous = "exact", frozen: bool = False, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        stages = [self.get_submodule(name) for name in cast(list[str], self.res_layers)]
        if atrous == "second":
            dilate_second(stages, output_stride)
        else:
            dilate(stages, 4, output_stride)
        if frozen:
            freeze(self)

    def train(self, mode: bool = True) -> "StillroomResNet":
        """Set the mode, and return the net, which MMSegmentation's method does not."""
        super().train(mode)
        return self


@MODELS.register_module()
class StillroomResNetV1c(StillroomResNet):
    """StillroomResNet with a deep stem of three 3x3 convolutions."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(deep_stem=True, **arguments)


@MODELS.register_module()
class StillroomMobileNetV2(MobileNetV2):
    """MMSegmentation's MobileNetV2, dilated exactly; its own dilates only the first block of each stage.

    Args:
        output_stride: 8, 16 or 32.
        frozen: see `freeze`.
        arguments: of MMSegmentation's MobileNetV2.
    """

    def __init__(self, *, output_stride: int = 32, frozen: bool = False, **arguments: Any) -> None:
        super().__init__(**arguments)
        dilate([self.get_submodule(name) for name in cast(list[str], self.layers)], 2, output_stride)
        if frozen:
            freeze(self)

    def train(self, mode: bool = True) -> "StillroomMobileNetV2":
        """Set the mode, and return the net, which MMSegmentation's method does not."""
        super().train(mode)
        return self


@MODELS.register_module()
class StillroomBackbone(BaseModule):
    """Any backbone of ours as a backbone of MMSegmentation: images (b, 3, h, w) -> its levels, finest first.

    Args:
        name: see `build_backbone`.
        arguments: of the library's constructor; `output_stride` dilates timm's CNNs.
        frozen: see `freeze`.
        init_cfg: MMEngine's source of the initial weights.
    """

    def __init__(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        frozen: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.net = build_backbone(name, arguments=dict(arguments or {}))
        if frozen:
            freeze(self)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.net(images).maps
