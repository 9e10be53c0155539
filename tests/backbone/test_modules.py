"""The modules of the package: which imports which."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import stillroom.backbone

FOLDER = Path(stillroom.backbone.__file__ or "").parent


def imported(file: Path) -> set[str]:
    """The modules of the package that a file imports, at its head or late."""
    nodes = [n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
    inside = [n for n in nodes if (n.module or "").startswith("stillroom.backbone")]
    named = {f"{n.module}.{alias.name}" for n in inside for alias in n.names} | {n.module or "" for n in inside}
    return {name.removeprefix("stillroom.backbone.") for name in named}


def test_no_module_imports_another_in_a_circle() -> None:
    files = {".".join(f.relative_to(FOLDER).with_suffix("").parts): f for f in FOLDER.rglob("*.py")}
    graph = {name: imported(file) & files.keys() for name, file in files.items() if file.stem != "__init__"}
    order = list(TopologicalSorter(graph).static_order())  # raises where there is a circle
    assert order.index("registry") < order.index("initial") and order.index("checkpoint") < order.index("initial")
    assert "checkpoint" not in graph["registry"]
