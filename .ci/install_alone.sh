#!/usr/bin/env bash
# Each package installs beside backbone alone, into an empty environment, and its command answers there.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$PWD/.venv/bin/uv
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

for package in distill cls_transfer seg_transfer det_transfer eval_ssl; do
  "$uv" venv --quiet --python .venv/bin/python "$folder/$package"
  python=$folder/$package/bin/python
  "$uv" pip install --quiet --python "$python" --constraint constraints.txt packages/backbone "packages/$package"
  (
    cd "$folder" # away from the sources: what is imported is what was installed
    "$python" - "$package" <<'PY'
import importlib
import pkgutil
import sys

import stillroom

found = sorted(module.name for module in pkgutil.iter_modules(stillroom.__path__))
assert found == sorted({"backbone", sys.argv[1]}), found
assert stillroom.__file__ is None, "stillroom must stay a namespace package"
importlib.import_module(f"stillroom.{sys.argv[1]}")
PY
    "$folder/$package/bin/stillroom-${package//_/-}" --help > /dev/null
    "$folder/$package/bin/stillroom-checkpoint" --help > /dev/null
  )
  rm -rf "${folder:?}/$package"
  echo "stillroom-${package//_/-} installs and answers alone"
done
