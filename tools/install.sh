#!/usr/bin/env bash
# Install one package, with those of ours that it depends on, into .venv, or all packages:  bash tools/install.sh [PACKAGE ...]
# PACKAGE: backbone, runs, images, convert, finetune, distill, cls_transfer, seg_transfer, det_transfer, eval_ssl. Needs Python 3.11 or newer (set PYTHON=... to choose one).
set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -x .venv/bin/python ]; then
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "error: $python is not Python 3.11 or newer: install one and run PYTHON=python3.12 bash $0" >&2
    exit 2
  }
  "$python" -m venv .venv
fi
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet uv

packages=()
for name in "${@:-all}"; do
  if [ "$name" = all ]; then
    for folder in packages/*/; do packages+=(-e "$folder"); done
  elif [ -f "packages/$name/pyproject.toml" ]; then
    for needed in $(sed -n 's/^  "stillroom-\([a-z]*\)>=.*/\1/p' "packages/$name/pyproject.toml"); do
      packages+=(-e "packages/$needed")
    done
    packages+=(-e "packages/$name")
  else
    echo "error: there is no package $name, choose one of: $(ls packages | tr '\n' ' ')" >&2
    exit 2
  fi
done
# compile here, on all cores, rather than in the first command (or in every command, if Python may not write there)
.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python --constraint constraints.txt "${packages[@]}"
