#!/usr/bin/env bash
# A run under DeepSpeed's own launcher, over the hosts of a hostfile (lines of `HOST slots=GPUS`).
#
#   HOSTFILE=hosts scripts/launch/deepspeed.sh flexilit_b run_dir=/shared/runs/b            # on one host, ssh to all
#   HOSTFILE=hosts LAUNCHER=none NODE_RANK=0 MASTER_ADDR=node1 scripts/launch/deepspeed.sh ...   # on every host, no ssh
#
# Variables, with their defaults:
#   HOSTFILE            the hosts, the same file everywhere
#   LAUNCHER=pdsh       pdsh | openmpi | mpich | slurm, which start all hosts from one; none: start the script on each
#   NODE_RANK           with none: this host's line in HOSTFILE, from 0
#   MASTER_ADDR         address of the first host; needed with none, otherwise asked of it by ssh
#   MASTER_PORT=29500   a free port there
#   GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME   the network interface between the hosts. With ssh only NCCL_*, PYTHON* and UCX*
#                       travel: write the others, one NAME=VALUE a line, into .deepspeed_env here or in your home
#   FLEXICLIP_DRY_RUN=1 print the command instead

set -euo pipefail

stop() {
  printf 'deepspeed.sh: %s\n' "$*" >&2
  exit 2
}

[ $# -gt 0 ] || stop "name a recipe: HOSTFILE=hosts deepspeed.sh RECIPE [key=value ...]"
command -v deepspeed >/dev/null || stop "deepspeed is not on the PATH: activate the environment that flexiclip is installed in"
[ -f "${HOSTFILE:-}" ] || stop "HOSTFILE=${HOSTFILE:-} is no file: write one with a line HOST slots=GPUS for each host"

LAUNCHER=${LAUNCHER:-pdsh}
options=(--hostfile "$HOSTFILE" --master_port "${MASTER_PORT:-29500}")
if [ -n "${MASTER_ADDR:-}" ]; then options+=(--master_addr "$MASTER_ADDR"); fi
case $LAUNCHER in
  none)
    [[ ${NODE_RANK:-} =~ ^[0-9]+$ ]] || stop "NODE_RANK=${NODE_RANK:-} must be this host's line in $HOSTFILE, from 0"
    [ -n "${MASTER_ADDR:-}" ] || stop "LAUNCHER=none needs MASTER_ADDR, the address of the first host"
    options+=(--no_ssh --node_rank "$NODE_RANK")
    ;;
  pdsh)
    command -v pdsh >/dev/null || stop "pdsh is not installed: apt install pdsh, or set LAUNCHER to openmpi, mpich, slurm or none"
    options+=(--launcher pdsh)
    ;;
  openmpi | mpich | slurm) options+=(--launcher "$LAUNCHER") ;;
  *) stop "LAUNCHER=$LAUNCHER must be pdsh, openmpi, mpich, slurm or none" ;;
esac

command=(deepspeed "${options[@]}" --module flexiclip train "$@")
if [ "${FLEXICLIP_DRY_RUN:-}" = 1 ]; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
