#!/usr/bin/env bash
# Trains on the GPUs of this machine, in one process:
#
#   launch/gpu_local.sh [--dry-run] --config configs/vqa.py --workdir runs/vqa
#
# All arguments go to `albef train`. Settings, as environment variables:
#   VENV                     the environment that albef is installed in (.venv in the repository)
#   GPUS                     which GPUs to use, such as 0,1 (all)
#   XLA_CLIENT_MEM_FRACTION  share of their memory that JAX takes at the start (0.9)
set -euo pipefail

fail() {
  echo "gpu_local.sh: $1" >&2
  exit 2
}

dry_run='' args=()
for arg in "$@"; do
  if [[ $arg == --dry-run ]]; then dry_run=1; else args+=("$arg"); fi
done
[[ ${#args[@]} -gt 0 ]] || fail "give the arguments of albef train: --config C --workdir W"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
albef=${VENV:-$root/.venv}/bin/albef
command=(env)
# JAX's own default is 0.75; it refuses the old and the new name together.
if [[ ! ${XLA_PYTHON_CLIENT_MEM_FRACTION-} ]]; then
  command+=(XLA_CLIENT_MEM_FRACTION="${XLA_CLIENT_MEM_FRACTION:-0.9}")
fi
if [[ ${GPUS-} ]]; then command+=(CUDA_VISIBLE_DEVICES="$GPUS"); fi
command+=("$albef" train "${args[@]}")

if [[ $dry_run ]]; then
  printf '%q ' "${command[@]}"
  printf '\n'
  exit
fi
[[ -x $albef ]] || fail "there is no $albef: pip install -e \".[cuda]\" there, or set VENV"
command -v nvidia-smi >/dev/null || fail "nvidia-smi is not installed: install NVIDIA's driver"
gpus=$(nvidia-smi --query-gpu=name,memory.total --format=csv,noheader) ||
  fail "nvidia-smi finds no working GPU; its own message is above"
[[ $gpus ]] || fail "nvidia-smi lists no GPU; this machine has none, or hides it"
echo "$gpus" >&2
exec "${command[@]}"
