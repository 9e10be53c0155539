"""The modules of all packages and of tools: which imports which."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]


def module_files() -> dict[str, Path]:
    """Every module but `__init__`, which only re-exports, by the name that it is imported by."""
    sources = [(source, file) for source in ROOT.glob("packages/*/src") for file in source.rglob("*.py")]
    sources += [(ROOT / "tools", file) for file in (ROOT / "tools").rglob("*.py")]
    named = {".".join(file.relative_to(source).with_suffix("").parts): file for source, file in sources}
    return {name: file for name, file in named.items() if file.stem != "__init__"}


def imported(file: Path) -> set[str]:
    """The names that a file imports, at its head or late: modules, and what it takes from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import, which this test does not follow"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_no_module_imports_another_in_a_circle() -> None:
    files = module_files()
    packages = {name.rpartition(".")[0] for name in files}  # tools/bench.py starts the package bench
    graph = {name: imported(file) & files.keys() - packages for name, file in files.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises where there is a circle
    for package in ("backbone", "cls_transfer", "det_transfer", "distill", "eval_ssl", "seg_transfer"):
        assert f"stillroom.{package}.cli" in order
    assert graph["bench.knn"] >= {"bench.config"}, "imports of tools are found"
    registry, checkpoint, initial = (f"stillroom.backbone.{name}" for name in ("registry", "checkpoint", "initial"))
    assert order.index(registry) < order.index(initial) and order.index(checkpoint) < order.index(initial)
    assert checkpoint not in graph[registry]
