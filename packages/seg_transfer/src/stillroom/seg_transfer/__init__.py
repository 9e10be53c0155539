"""Student to semantic segmentation: MMSegmentation on MMEngine, started from our weights, asserted tensor by tensor."""

import sys

import lazy_loader

# The names of __init__.pyi, each imported when it is first used: a command line starts without torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

if "mmengine" in sys.modules:  # it imports this for a config that a run before 0.2.0 left, and expects its names
    from stillroom.seg_transfer import plugin  # noqa: F401
