"""Frozen evaluation of any backbone: exact k-NN, linear probes, logistic regression, few shots."""

import lazy_loader

# The names of __init__.pyi, each imported when it is first used: a command line starts without torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
