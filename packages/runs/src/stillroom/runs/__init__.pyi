from .results import Results, format_table, read_results, write_results
from .run import Run, RunDirectory

__all__ = [
    "Results",
    "Run",
    "RunDirectory",
    "format_table",
    "read_results",
    "write_results",
]
