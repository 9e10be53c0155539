from .exporting import export_file
from .importing import import_file
from .onnx import write_onnx
from .reading import read_state

__all__ = ["export_file", "import_file", "read_state", "write_onnx"]
