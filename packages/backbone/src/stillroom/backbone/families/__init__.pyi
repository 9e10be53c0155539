from . import byol, cifar, simclr, timm, torchvision

__all__ = ["byol", "cifar", "simclr", "timm", "torchvision"]
