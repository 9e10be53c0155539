from . import cifar, simclr, timm, torchvision

__all__ = ["cifar", "simclr", "timm", "torchvision"]
