#!/usr/bin/env bash
# Fills in launch/gke.yaml and sends it to the cluster that kubectl talks to:
#
#   NAME=albef IMAGE=europe-docker.pkg.dev/my-project/albef/albef TOPOLOGY=16x16 \
#     launch/gke.sh --config configs/pretrain_14m.py:pod --workdir gs://bucket/albef
#   launch/gke.sh --dry-run ...     prints the filled-in job; pipe it into
#                                   kubectl apply --dry-run=client -f -  to have it checked
#
# All arguments go to `albef train`. Settings, as environment variables:
#   NAME             of the job
#   IMAGE            container image, made with launch/Dockerfile
#   TOPOLOGY         of the slice, such as 4x4 or 4x4x4
#   ACCELERATOR      tpu-v5-lite-podslice (default: v5e), tpu-v6e-slice, tpu-v5p-slice,
#                    tpu-v4-podslice
#   CHIPS            of one machine (4; 8 for a v5e or v6e slice 2x4 in one machine)
#   SLICES           joined by the data centre's network (1); set config.mesh.slices as well
#   COMPILE_CACHE    gs:// folder of compiled programs, which new pods then find (none)
#   SERVICE_ACCOUNT  of Kubernetes, with access to the bucket (default)
set -euo pipefail

fail() {
  echo "gke.sh: $1" >&2
  exit 2
}

dry_run='' args=()
for arg in "$@"; do
  if [[ $arg == --dry-run ]]; then dry_run=1; else args+=("$arg"); fi
done
[[ ${#args[@]} -gt 0 ]] || fail "give the arguments of albef train: --config C --workdir W"
for name in NAME IMAGE TOPOLOGY; do
  [[ ${!name-} ]] || fail "$name is not set; see the list at the top of launch/gke.sh"
done
[[ $TOPOLOGY =~ ^[0-9]+x[0-9]+(x[0-9]+)?$ ]] ||
  fail "TOPOLOGY is '$TOPOLOGY'; give it as 4x4 or 4x4x4"
CHIPS=${CHIPS:-4} SLICES=${SLICES:-1}
[[ $CHIPS =~ ^[1-9][0-9]*$ ]] || fail "CHIPS is '$CHIPS'; give the chips of one machine"
[[ $SLICES =~ ^[1-9][0-9]*$ ]] || fail "SLICES is '$SLICES'; give a number of slices"
chips=$((${TOPOLOGY//x/*}))
((chips % CHIPS == 0)) || fail "TOPOLOGY $TOPOLOGY has $chips chips, not a multiple of CHIPS=$CHIPS"

# As a JSON list, which is YAML too: spaces and quotes survive.
ARGS=''
for arg in "${args[@]}"; do
  [[ $arg != *[[:cntrl:]]* ]] || fail "an argument holds a line break or a control character"
  arg=${arg//\\/\\\\}
  # Kubernetes expands $(NAME) in arguments; $$ is one dollar.
  arg=${arg//\$/\$\$}
  ARGS+=", \"${arg//\"/\\\"}\""
done
# shellcheck disable=SC2034  # they are used by name
ARGS="[${ARGS#, }]" HOSTS=$((chips / CHIPS)) COMPILE_CACHE=${COMPILE_CACHE-}
# shellcheck disable=SC2034
ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice} SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}

job=$(<"$(dirname "${BASH_SOURCE[0]}")/gke.yaml")
for name in NAME IMAGE TOPOLOGY CHIPS SLICES HOSTS ACCELERATOR SERVICE_ACCOUNT COMPILE_CACHE \
  ARGS; do
  job=${job//"\${$name}"/"${!name}"}
done
if [[ $dry_run ]]; then
  echo "$job"
  exit
fi
command -v kubectl >/dev/null || fail "kubectl is not installed; see docs/pods.md"
kubectl apply -f - <<<"$job"
