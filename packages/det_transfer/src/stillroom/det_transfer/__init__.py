"""Fine-tune a backbone for object detection, with the detectors of Detectron2 or of torchvision."""

import lazy_loader

# The names of __init__.pyi, each imported when it is first used: a command line starts without torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
