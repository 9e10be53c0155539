"""The benchmarks of tools/bench.py, one module each: `figures(settings)` measures and returns the numbers."""
