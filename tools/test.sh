#!/usr/bin/env bash
# Install what is missing, then run lint, types and tests of everything, or of one package.
#   bash tools/test.sh                         all packages, tools and the contract between them, without slow tests
#   bash tools/test.sh --slow                  with slow tests
#   bash tools/test.sh distill                 packages/distill and tests/distill
#   bash tools/test.sh distill --slow -k pts   all other words go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."

package=
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  package=$1
  shift
fi
# Two test processes. Each starts with half of the tests in order, and steals tests from the other when it is done. So most
# fixtures of a file and most libraries of a package are loaded in one process only.
pytest=(.venv/bin/python -m pytest --numprocesses 2 --dist worksteal -m "not slow")
for word in "$@"; do
  if [ "$word" = --slow ]; then pytest+=(-m ""); else pytest+=("$word"); fi
done

bash tools/install.sh ${package:+"$package"}
.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python --constraint constraints.txt \
  --group pyproject.toml:dev

export OMP_NUM_THREADS=1 # per process: torch's threads would compete for two cores
if [ -z "$package" ]; then
  .venv/bin/ruff check .
  .venv/bin/ruff format --check .
  .venv/bin/mypy
  "${pytest[@]}"
else
  .venv/bin/ruff check "packages/$package" "tests/$package"
  .venv/bin/ruff format --check "packages/$package" "tests/$package"
  .venv/bin/mypy --package "stillroom.$package"
  "${pytest[@]}" "tests/$package"
fi
