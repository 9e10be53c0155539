"""Benchmarks: their settings and what they import; no number is measured."""

import importlib
import runpy
import sys
from pathlib import Path

import pytest
import tyro

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

MODULES = sorted(file.stem for file in (TOOLS / "bench").glob("*.py"))
HELPERS = {"__init__", "config", "images", "machine", "spread"}
COMPARED_WITH = {"seg": ("mmseg", "mmengine", "mmcv"), "det": ("detectron2",)}
"""Benchmark -> libraries that it alone may import."""


@pytest.fixture
def settings() -> dict[str, type]:
    """Benchmark -> settings, from the script: `import bench` would be the folder beside it."""
    return runpy.run_path(str(TOOLS / "bench.py"))["SETTINGS"]


def test_each_benchmark_has_settings_with_defaults_and_a_module_of_its_own(settings: dict[str, type]) -> None:
    assert {*MODULES} - HELPERS == {*settings}
    for kind in settings.values():
        assert tyro.cli(kind, args=[]) == kind()


@pytest.mark.parametrize("name", sorted({*MODULES} - HELPERS))
def test_a_benchmark_needs_no_library_that_only_another_one_compares_with(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`bench.py projection` runs without MMSegmentation, and `bench.py det` too."""
    if name in COMPARED_WITH:
        pytest.importorskip(COMPARED_WITH[name][0])
    for other, libraries in COMPARED_WITH.items():
        for library in libraries if other != name else ():
            monkeypatch.setitem(sys.modules, library, None)  # importing it fails
    for module in MODULES:
        monkeypatch.delitem(sys.modules, f"bench.{module}", raising=False)
    assert callable(importlib.import_module(f"bench.{name}").figures)
