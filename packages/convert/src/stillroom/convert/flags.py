"""The allowed values of the flags of import and export."""

from typing import Literal

Source = Literal["torchvision", "timm", "kdep", "simreg", "moco", "swav", "dino", "byol", "simclr", "efficientnet-lite"]
"""The project whose key names an imported file uses."""

Weights = Literal["ema", "raw"]
"""Which weights of a training file: their exponential moving average, or those that the optimizer stepped."""

Framework = Literal["mmsegmentation", "detectron2"]
"""A framework for segmentation or detection, whose own net a backbone is exported to."""

Target = Literal["torchvision", "timm", "huggingface", "onnx", "mmsegmentation", "detectron2"]
"""The project whose key names, or the format, to export to."""
