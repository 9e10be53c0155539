"""What the flags of several commands may say."""

from typing import Literal

DeviceName = Literal["auto", "cpu", "cuda", "mps"]

OnBroken = Literal["refuse", "skip"]
"""What an image that cannot be decoded does: stop the run with its name, or be left out, named and counted."""

Source = Literal["torchvision", "timm", "kdep", "simreg", "moco", "swav", "dino", "efficientnet-lite"]
"""Whose key names a file to import uses."""

Target = Literal["torchvision", "timm", "huggingface", "onnx"]
"""Whose key names, or which format, to export to."""
