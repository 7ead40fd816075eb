#!/usr/bin/env bash
# A run under Slurm: one torchrun a host, stopped in time and queued again until it is complete.
#
#   sbatch --nodes=4 --gpus-per-node=8 scripts/launch/slurm.sh flexilit_b run_dir=/shared/runs/b [key=value ...]
#
# Submit from the repository's root, or set LAUNCH_DIR to the folder of torchrun.sh, in an environment that has flexiclip: it
# travels with the job. Two minutes before the time limit the ranks save and leave, and the job is queued again under its number; the
# next start goes on from the checkpoint. A SIGTERM is preemption, after which Slurm queues the job again itself, or scancel.
#
# Variables, with their defaults: LAUNCH_DIR=$SLURM_SUBMIT_DIR/scripts/launch, RDZV_PORT=29500, HEAD_ADDR (the first host of the
# job), those of torchrun.sh, and FLEXICLIP_DRY_RUN=1, which prints the command instead.

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
# The first torchrun to leave must not take with it those whose ranks still save: they follow by themselves, or after --wait seconds.
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
trap 'again=1; signalled=1; kill -TERM "$step" || true' USR1 # srun hands it to the torchruns, they to the ranks
trap 'signalled=1; kill -TERM "$step" || true' TERM
code=0
wait "$step" || code=$?
while [ -n "$signalled" ]; do # a signal ends the waiting with a code of its own: the step's is asked for again
  signalled=
  ended=0
  wait "$step" || ended=$?
  [ "$ended" = 127 ] || code=$ended # 127: nothing to wait for, since the step's code has been read
done
if [ -n "$again" ] && [ "$code" != 0 ]; then exec scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
