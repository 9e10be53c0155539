"""A decoder that MMSegmentation lacks: the dense linear probe."""

from typing import Any

from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class LinearHead(BaseDecodeHead):
    """Batch norm and a 1x1 convolution, which measure how linearly separable the features of pixels are.

    Args:
        arguments: of MMSegmentation's BaseDecodeHead.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.norm = build_norm_layer(self.norm_cfg, self.in_channels)[1]

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return self.cls_seg(self.norm(self._transform_inputs(inputs)))
