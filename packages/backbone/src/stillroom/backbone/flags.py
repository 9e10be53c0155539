"""The allowed values of flags that several commands share."""

from typing import Literal

DeviceName = Literal["auto", "cpu", "cuda", "mps"]

OnBroken = Literal["refuse", "skip"]
"""An image that cannot be decoded stops the run with its name (`refuse`), or is skipped, named and counted."""

Source = Literal["torchvision", "timm", "kdep", "simreg", "moco", "swav", "dino", "efficientnet-lite"]
"""The project whose key names an imported file uses."""

Target = Literal["torchvision", "timm", "huggingface", "onnx"]
"""The project whose key names, or the format, to export to."""
