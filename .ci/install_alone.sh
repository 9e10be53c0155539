#!/usr/bin/env bash
# Install each package, with those of ours that it depends on, into an empty environment, and run its command there; two packages at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
export uv=$PWD/.venv/bin/uv
folder=$(mktemp -d)
export folder
trap 'rm -rf "$folder"' EXIT

# Each of the two lanes reuses one path for its environments, so that bytecode compiled for the first package (which takes
# longer than installing from uv's cache) serves the next ones too.
export PYTHONPYCACHEPREFIX=$folder/compiled
unset PYTHONDONTWRITEBYTECODE

alone() {
  local package=$1 environment=$folder/lane-$lane
  local python=$environment/bin/python
  "$uv" venv --quiet --python .venv/bin/python "$environment"
  local needed=$(sed -n 's/^  "stillroom-\([a-z]*\)>=.*/\1/p' "packages/$package/pyproject.toml")
  "$uv" pip install --quiet --python "$python" --constraint constraints.txt $(printf 'packages/%s ' $needed "$package")
  (
    cd "$folder" # away from the sources, so that the installed packages are imported
    EAGER_IMPORT=1 "$python" - $needed "$package" <<'PY'
import importlib
import pkgutil
import sys

import stillroom

installed = sorted(module.name for module in pkgutil.iter_modules(stillroom.__path__))
assert installed == sorted(sys.argv[1:]), installed
assert stillroom.__file__ is None, "stillroom must stay a namespace package"
importlib.import_module(f"stillroom.{sys.argv[-1]}")
PY
    "$environment/bin/stillroom-checkpoint" inspect --help > /dev/null
    case $package in
      convert) "$environment/bin/stillroom-checkpoint" import --help > /dev/null ;; # it adds commands to backbone's
      runs | images | finetune) ;; # libraries
      *) "$environment/bin/stillroom-${package//_/-}" --help > /dev/null ;;
    esac
  )
  rm -rf "$environment"
  echo "stillroom-${package//_/-} installs and runs alone"
}
export -f alone
printf '%s\n' runs images convert finetune distill cls_transfer seg_transfer det_transfer eval_ssl |
  xargs -P 2 --process-slot-var=lane -I {} bash -euo pipefail -c 'alone {}'
