#!/usr/bin/env bash
# Install what is missing, then lint, types and tests: of everything, or of one package alone.
#   bash tools/test.sh                  all packages, tools and the contract between them
#   bash tools/test.sh distill          packages/distill and tests/distill
#   bash tools/test.sh distill -k pts   what follows the package goes to pytest
set -euo pipefail
cd "$(dirname "$0")/.."

package=${1:-}
[ $# -gt 0 ] && shift
bash tools/install.sh ${package:+"$package"}
.venv/bin/uv pip install --quiet --python .venv/bin/python --constraint constraints.txt --group pyproject.toml:dev

# Two test processes with one thread each: torch's own threads fight over two cores.
export OMP_NUM_THREADS=1
if [ -z "$package" ]; then
  .venv/bin/ruff check .
  .venv/bin/ruff format --check .
  .venv/bin/mypy
  .venv/bin/python -m pytest --numprocesses 2 "$@"
else
  .venv/bin/ruff check "packages/$package" "tests/$package"
  .venv/bin/ruff format --check "packages/$package" "tests/$package"
  .venv/bin/mypy --package "stillroom.$package"
  .venv/bin/python -m pytest --numprocesses 2 "tests/$package" "$@"
fi
