#!/usr/bin/env bash
# Each package installs beside backbone alone, into an empty environment, and its command answers there; two at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
export uv=$PWD/.venv/bin/uv
folder=$(mktemp -d)
export folder
trap 'rm -rf "$folder"' EXIT

alone() {
  local package=$1 python=$folder/$1/bin/python
  "$uv" venv --quiet --python .venv/bin/python "$folder/$package"
  "$uv" pip install --quiet --python "$python" --constraint constraints.txt packages/backbone "packages/$package"
  (
    cd "$folder" # away from the sources: what is imported is what was installed
    EAGER_IMPORT=1 "$python" - "$package" <<'PY'
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
}
export -f alone
printf '%s\n' distill cls_transfer seg_transfer det_transfer eval_ssl |
  xargs -P 2 -I {} bash -euo pipefail -c 'alone {}'
