from .exporting import export_file, write_onnx
from .importing import import_file
from .reading import read_state

__all__ = ["export_file", "import_file", "read_state", "write_onnx"]
