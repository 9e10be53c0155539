from .exporting import export_file
from .importing import import_file, read_state
from .onnx import write_onnx

__all__ = ["export_file", "import_file", "read_state", "write_onnx"]
