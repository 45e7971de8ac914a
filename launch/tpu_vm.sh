#!/usr/bin/env bash
# A training job on a Cloud TPU slice, from here to the end, through gcloud:
#
#   export TPU_NAME=albef ZONE=us-west4-a TPU_TYPE=v5litepod-256 GCLOUD_FLAGS=--spot
#   launch/tpu_vm.sh queue       ask for the slice (or create: now or not at all)
#   launch/tpu_vm.sh status      is it there yet
#   launch/tpu_vm.sh install     copy this repository to all machines of the slice, install it
#   launch/tpu_vm.sh run --config configs/pretrain_14m.py:pod --workdir gs://bucket/albef
#   launch/tpu_vm.sh logs        follow the log of machine 0 (logs 3, logs all)
#   launch/tpu_vm.sh stop        save, and stop on all machines
#   launch/tpu_vm.sh delete      give the slice back; it costs money until then
#                                (delete --queued after queue)
#
# `run` starts `albef train` on all machines, where it goes on when this terminal closes and starts
# again after a crash. `run --requeue ...` stays here and watches: a slice that was taken away is
# asked for again (by queue), installed, and the run goes on. --dry-run prints the commands instead.
#
# Settings, as environment variables:
#   TPU_NAME       of the slice
#   ZONE           such as us-west4-a
#   PROJECT        (gcloud's own)
#   TPU_TYPE       for create and queue, such as v5litepod-8, v6e-64, v4-32
#   RUNTIME        software version (by TPU_TYPE)
#   SLICES         joined by the data centre's network (1), with queue; set config.mesh.slices too
#   COMPILE_CACHE  for run: gs:// folder of compiled programs, which new machines then find
#   GCLOUD_FLAGS   more flags for create and queue, such as "--spot --network=mine"
set -euo pipefail

fail() {
  echo "tpu_vm.sh: $1" >&2
  exit 2
}

# Runs a command, or prints it so that it could be pasted into a shell.
do_() {
  if [[ $dry_run ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

need() {
  local name
  for name in "$@"; do
    [[ ${!name-} ]] || fail "$name is not set; see the list at the top of launch/tpu_vm.sh"
  done
}

tpus() { do_ gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}; }

runtime() {
  if [[ ${RUNTIME-} ]]; then
    echo "$RUNTIME"
    return
  fi
  case $TPU_TYPE in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) fail "no software version is known for TPU_TYPE $TPU_TYPE; set RUNTIME" ;;
  esac
}

# The slices; gcloud numbers them when there are several.
nodes() {
  if ((SLICES == 1)); then
    echo "$TPU_NAME"
  else
    local i
    for ((i = 0; i < SLICES; i++)); do echo "$TPU_NAME-$i"; done
  fi
}

# Runs a command in the shells of machine $1 (or all) of every slice.
on_machines() {
  local node
  for node in $(nodes); do
    tpus tpu-vm ssh "$node" --worker="$1" --command="$2"
  done
}

create() {
  ((SLICES == 1)) || fail "create makes one slice; use queue for SLICES=$SLICES"
  local version
  version=$(runtime)
  tpus tpu-vm create "$TPU_NAME" --accelerator-type="$TPU_TYPE" --version="$version" \
    ${gcloud_flags[@]+"${gcloud_flags[@]}"}
}

queue() {
  local version names
  version=$(runtime)
  if ((SLICES == 1)); then
    names=(--node-id="$TPU_NAME")
  else
    names=(--node-count="$SLICES" --node-prefix="$TPU_NAME")
  fi
  tpus queued-resources create "$TPU_NAME" "${names[@]}" --accelerator-type="$TPU_TYPE" \
    --runtime-version="$version" ${gcloud_flags[@]+"${gcloud_flags[@]}"}
}

status() {
  tpus queued-resources list --filter="name~$TPU_NAME"
  tpus tpu-vm list --filter="name~$TPU_NAME"
}

install() {
  local root archive node
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  archive=$(mktemp -d)/albef.tar.gz
  # What git knows or would add: not the environment, not the runs.
  if [[ $dry_run ]]; then
    printf '# %q: the files of %q that git does not ignore\n' "$archive" "$root"
  else
    git -C "$root" ls-files -z --cached --others --exclude-standard |
      tar -C "$root" --null -T - -czf "$archive"
  fi
  for node in $(nodes); do
    tpus tpu-vm scp "$archive" "$node:albef.tar.gz" --worker=all
  done
  # The machines have Python 3.10; uv brings a newer one.
  on_machines all 'set -e; mkdir -p albef; tar -xzf albef.tar.gz -C albef; cd albef
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python -e ".[tf,tpu]"'
  rm -r "$(dirname "$archive")"
}

start() {
  local command
  printf -v command ' %q' env JAX_COMPILATION_CACHE_DIR="${COMPILE_CACHE-}" \
    .venv/bin/albef train "$@"
  on_machines all "cd albef || exit 2
if [ -f ../albef.pid ] && kill -0 \$(cat ../albef.pid) 2>/dev/null; then
  echo 'a job is running on '\$(hostname)'; stop it first' >&2; exit 2; fi
nohup setsid launch/keep_running.sh$command >>../albef.log 2>&1 </dev/null &
echo \$! >../albef.pid"
}

run() {
  local requeue=''
  if [[ ${1-} == --requeue ]]; then
    requeue=1
    shift
  fi
  [[ $# -gt 0 ]] || fail "give the arguments of albef train: run --config C --workdir W"
  if [[ $requeue ]]; then need TPU_TYPE; fi
  start "$@"
  if [[ $requeue ]]; then watch "$@"; fi
}

# Comes back when the job has ended; until then asks every minute what is the matter.
watch() {
  if [[ $dry_run ]]; then
    echo "# then every minute:"
    tpus queued-resources describe "$TPU_NAME" --format='value(state.state)'
    echo "# and where the slice is gone:"
    replace
    echo "# and where it is new, the above and:"
    install
    return
  fi
  local state line
  while true; do
    state=$(tpus queued-resources describe "$TPU_NAME" --format='value(state.state)') || state=GONE
    case $state in
      SUSPENDED | FAILED | GONE) replace ;;
      ACTIVE)
        line=$(job) || line=unreachable
        case $line in
          *'ended with exit code '*)
            echo "tpu_vm.sh: $line" >&2
            return "${line##* }"
            ;;
          running | unreachable) ;;
          # A new slice, or machines that were started anew.
          *) { install && start "$@"; } || echo "tpu_vm.sh: trying again" >&2 ;;
        esac
        ;;
    esac
    sleep "${PAUSE:-60}"
  done
}

# What machine 0 says of the job: running, or the last line of its log.
job() {
  # shellcheck disable=SC2016  # the number is of the process there
  tpus tpu-vm ssh "$(nodes | head -n 1)" --worker=0 --command='
if kill -0 $(cat albef.pid) 2>/dev/null; then echo running; else tail -n 1 albef.log; fi'
}

replace() {
  echo "# the slice is gone; asking for another" >&2
  tpus queued-resources delete "$TPU_NAME" --force --quiet || true
  queue || true
}

logs() {
  # shellcheck disable=SC2016  # $(hostname) is of the machine there
  case ${1-0} in
    all) on_machines all 'tail -n 100 -F albef.log | sed -u "s/^/$(hostname): /"' ;;
    *) on_machines "${1-0}" 'tail -n 100 -F albef.log' ;;
  esac
}

stop() {
  # shellcheck disable=SC2016  # the number is of the process there
  on_machines all 'pid=$(cat albef.pid 2>/dev/null) || exit 0
kill -TERM $pid 2>/dev/null || exit 0
while kill -0 $pid 2>/dev/null; do sleep 1; done
tail -n 1 albef.log'
}

delete() {
  if [[ ${1-} == --queued ]]; then
    tpus queued-resources delete "$TPU_NAME" --force --quiet
  else
    tpus tpu-vm delete "$TPU_NAME" --quiet
  fi
}

dry_run='' args=()
for arg in "$@"; do
  if [[ $arg == --dry-run ]]; then dry_run=1; else args+=("$arg"); fi
done
set -- ${args[@]+"${args[@]}"}
command=${1-}
case $command in
  create | queue | status | install | run | logs | stop | delete) shift ;;
  *) fail "give create, queue, status, install, run, logs, stop or delete" ;;
esac
need TPU_NAME ZONE
case $command in create | queue) need TPU_TYPE ;; esac
SLICES=${SLICES:-1}
[[ $SLICES =~ ^[1-9][0-9]*$ ]] || fail "SLICES is '$SLICES'; give a number of slices"
read -r -a gcloud_flags <<<"${GCLOUD_FLAGS-}"
[[ $dry_run ]] || command -v gcloud >/dev/null ||
  fail "gcloud is not installed; get the Google Cloud CLI first"
"$command" "$@"
