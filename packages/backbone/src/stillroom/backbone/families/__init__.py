"""One file per library of nets: what is supported there, and how each family is opened up."""

import lazy_loader

# The modules of __init__.pyi, each imported when it is first used: a net of one library needs no other.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
