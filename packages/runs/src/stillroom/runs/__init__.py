"""Runs: settings, processes, directories, states, sweeps and results; for every package that trains or evaluates."""

import lazy_loader

# The names of __init__.pyi, each imported when it is first used, so that a command line starts without torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
