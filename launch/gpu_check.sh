#!/usr/bin/env bash
# Measures this machine's NVIDIA GPU in under ten minutes: parity, speed, memory, resuming.
#
#   launch/gpu_check.sh --out gpu.json
#   python docs/gpu_table.py gpu.json --write docs/results.md
#
# It needs jax with CUDA and what setup.py lists but tensorflow-datasets and array_record: no
# TensorFlow, no data and no network. Arguments go to launch/gpu_check.py (--help, --seconds,
# --tiny). Settings, as environment variables:
#   PYTHON  which has these packages (.venv/bin/python in the repository, else python3)
set -euo pipefail

fail() {
  echo "gpu_check.sh: $1" >&2
  exit 2
}

[[ $# -gt 0 ]] || fail "give --out FILE, which gets what is measured"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[[ ${PYTHON-} || -x $python ]] || python=python3
if [[ " $* " != *" --tiny "* ]]; then
  command -v nvidia-smi >/dev/null || fail "nvidia-smi is not installed: install NVIDIA's driver"
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader >&2 ||
    fail "nvidia-smi finds no working GPU; its own message is above"
fi
exec "$python" "$root/launch/gpu_check.py" "$@"
