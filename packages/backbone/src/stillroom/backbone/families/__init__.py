"""One module per library of nets: the supported names, and how each family is built and opened."""

import lazy_loader

# The modules of __init__.pyi, each imported when it is first used: a net of one library needs no other library.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
