"""Optional libraries, each an extra of this package. Imports none of them before it is asked to."""

import importlib
from typing import Any


def import_extra(module: str, needs: str, extra: str) -> Any:
    """Import an optional library.

    Args:
        module: to import.
        needs: the beginning of the error sentence: what needs which distribution.
        extra: of this package, that installs it.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{needs}: pip install 'stillroom-eval-ssl[{extra}]'") from error


def import_umap() -> Any:
    """Import UMAP, of the extra `umap`."""
    return import_extra("umap", "--embedding umap needs umap-learn", "umap")


def import_pyarrow() -> tuple[Any, Any]:
    """Import pyarrow and its Parquet module, of the extra `parquet`."""
    needs = "--format parquet needs pyarrow"
    return import_extra("pyarrow", needs, "parquet"), import_extra("pyarrow.parquet", needs, "parquet")


def import_faiss() -> Any:
    """Import faiss, of the extra `faiss` or `faiss-gpu`."""
    return import_extra("faiss", "the faiss backend needs faiss", "faiss")
