#!/usr/bin/env bash
# Trains on the GPUs of a SLURM job, one process for each GPU:
#
#   sbatch launch/slurm.sh --config configs/pretrain_14m.py --workdir runs/albef
#   sbatch --nodes=4 --gpus-per-node=4 --ntasks-per-node=4 --time=12:00:00 launch/slurm.sh ...
#   launch/slurm.sh --dry-run --config ...     prints what the job would run
#
# Submit it from the repository. All arguments go to `albef train`. As many tasks as GPUs per node:
# JAX gives task i of a node its i-th GPU, so no --gpus-per-task, which hides the others. Five
# minutes before its time is over the job is told; the run saves, and the job goes back to the
# queue. It ends when the run is complete. VENV is the environment that albef is installed in
# (.venv in the repository).
#SBATCH --job-name=albef
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=albef-%j.log
set -euo pipefail

fail() {
  echo "slurm.sh: $1" >&2
  exit 2
}

dry_run='' args=()
for arg in "$@"; do
  if [[ $arg == --dry-run ]]; then dry_run=1; else args+=("$arg"); fi
done
[[ ${#args[@]} -gt 0 ]] || fail "give the arguments of albef train: --config C --workdir W"

# SLURM runs a copy of this file from its own folder, so where it lies says nothing.
root=${SLURM_SUBMIT_DIR:-$PWD}
albef=${VENV:-$root/.venv}/bin/albef
# srun has not taken --cpus-per-task from sbatch since SLURM 22.05.
command=(srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}"
         "$albef" train "${args[@]}")
requeue=(scontrol requeue "${SLURM_JOB_ID:-JOB_ID}")

if [[ $dry_run ]]; then
  printf '%q ' "${command[@]}"
  printf '\n# and at the end of its time: '
  printf '%q ' "${requeue[@]}"
  printf '\n'
  exit
fi
[[ ${SLURM_JOB_ID-} ]] || fail "SLURM_JOB_ID is not set: submit it with sbatch launch/slurm.sh ..."
[[ -x $albef ]] || fail "there is no $albef: submit from the repository, or set VENV"
command -v srun >/dev/null || fail "srun is not on the PATH of the node; load SLURM's module"

stopped=
# shellcheck disable=SC2329  # trap calls it
stop() {
  stopped=1
  kill -TERM "$srun"
}
cd "$root"
"${command[@]}" &
srun=$!
trap stop TERM USR1 USR2
code=0
wait "$srun" || code=$?
if [[ $stopped ]]; then
  # The first wait ended with the signal, not with the run.
  code=0
  wait "$srun" || code=$?
  [[ $code == 0 ]] && "${requeue[@]}"
fi
exit "$code"
