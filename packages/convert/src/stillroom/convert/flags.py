"""The allowed values of the flags of import and export."""

from typing import Literal

Source = Literal["torchvision", "timm", "kdep", "simreg", "moco", "swav", "dino", "efficientnet-lite"]
"""The project whose key names an imported file uses."""

Target = Literal["torchvision", "timm", "huggingface", "onnx"]
"""The project whose key names, or the format, to export to."""
