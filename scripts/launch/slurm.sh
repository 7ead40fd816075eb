#!/usr/bin/env bash
# A run under Slurm, with one torchrun per host. It is stopped before the time limit and queued again until it is complete.
#
#   sbatch --nodes=4 --gpus-per-node=8 scripts/launch/slurm.sh flexilit_b run_dir=/shared/runs/b [key=value ...]
#
# Submit it from the repository's root, or set LAUNCH_DIR to the folder of torchrun.sh. Activate an environment with flexiclip
# first; Slurm passes it on to the job. Two minutes before the time limit the ranks save and end, and the job is queued again under
# its number. The next start goes on from the checkpoint. A SIGTERM means scancel, or preemption, after which Slurm itself queues
# the job again.
#
# Variables, with their defaults: LAUNCH_DIR=$SLURM_SUBMIT_DIR/scripts/launch, RDZV_PORT=29500, HEAD_ADDR (default: the first host
# of the job), those of torchrun.sh, and FLEXICLIP_DRY_RUN=1, which only prints the command.

#SBATCH --job-name=flexiclip
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -euo pipefail

stop() {
  printf 'slurm.sh: %s\n' "$*" >&2
  exit 2
}

[ $# -gt 0 ] || stop "name a recipe: sbatch slurm.sh RECIPE [key=value ...]"
[ -n "${SLURM_JOB_ID:-}" ] || stop "this is no Slurm job: start it with sbatch"
LAUNCH_DIR=${LAUNCH_DIR:-${SLURM_SUBMIT_DIR:-.}/scripts/launch}
[ -f "$LAUNCH_DIR/torchrun.sh" ] || stop "$LAUNCH_DIR has no torchrun.sh: submit from the repository's root, or set LAUNCH_DIR"
if [ -z "${HEAD_ADDR:-}" ]; then
  command -v scontrol >/dev/null || stop "scontrol is not on the PATH: set HEAD_ADDR to the first host of the job"
  mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  HEAD_ADDR=${hosts[0]}
fi

export NNODES=${NNODES:-${SLURM_NNODES:?}} RDZV_ENDPOINT=$HEAD_ADDR:${RDZV_PORT:-29500} RDZV_ID=flexiclip-$SLURM_JOB_ID
# The first torchrun that ends must not end the others, whose ranks may still save. They end by themselves or after --wait seconds.
command=(srun --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=300 bash "$LAUNCH_DIR/torchrun.sh" "$@")
if [ "${FLEXICLIP_DRY_RUN:-}" = 1 ]; then
  printf 'NNODES=%q RDZV_ENDPOINT=%q RDZV_ID=%q ' "$NNODES" "$RDZV_ENDPOINT" "$RDZV_ID"
  printf '%q ' "${command[@]}"
  echo
  exit
fi

"${command[@]}" &
step=$!
again=
signalled=
trap 'again=1; signalled=1; kill -TERM "$step" || true' USR1 # srun passes it to the torchruns, and they to the ranks
trap 'signalled=1; kill -TERM "$step" || true' TERM
code=0
wait "$step" || code=$?
while [ -n "$signalled" ]; do # a signal ends `wait` with its own code, so wait again for the code of the step
  signalled=
  ended=0
  wait "$step" || ended=$?
  [ "$ended" = 127 ] || code=$ended # 127: nothing left to wait for, the step's code has been read already
done
if [ -n "$again" ] && [ "$code" != 0 ]; then exec scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
