#!/usr/bin/env bash
# Install one package with backbone into .venv, or all of them:  bash tools/install.sh [PACKAGE ...]
# PACKAGE: backbone, distill, cls_transfer, seg_transfer, det_transfer, eval_ssl. Needs Python 3.11 or newer (say PYTHON=... for another one).
set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -x .venv/bin/python ]; then
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "error: $python is not Python 3.11 or newer: install one and say PYTHON=python3.12 bash $0" >&2
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
    packages+=(-e packages/backbone -e "packages/$name")
  else
    echo "error: there is no package $name; there are: $(ls packages | tr '\n' ' ')" >&2
    exit 2
  fi
done
# compiled here, on all cores, and not by the first commands, or by every command where Python may not write
.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python --constraint constraints.txt "${packages[@]}"
