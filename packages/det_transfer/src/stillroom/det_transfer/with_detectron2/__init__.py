"""Detectron2 on our backbones. It is in no package index: who imports this without it is told what to do."""

from importlib import util

INSTALLATION = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"

if util.find_spec("detectron2") is None:
    raise ValueError(
        f"Detectron2 is not installed: install it as {INSTALLATION} says (with setuptools<81), "
        f"or train torchvision's detector by --backend torchvision"
    )
