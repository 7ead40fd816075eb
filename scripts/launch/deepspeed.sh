#!/usr/bin/env bash
# Starts a run with DeepSpeed's launcher, on the hosts of a hostfile (lines of `HOST slots=GPUS`).
#
#   HOSTFILE=hosts scripts/launch/deepspeed.sh flexilit_b run_dir=/shared/runs/b            # on one host, which uses ssh
#   HOSTFILE=hosts LAUNCHER=none NODE_RANK=0 MASTER_ADDR=node1 scripts/launch/deepspeed.sh ...   # on every host, without ssh
#
# Variables, with their defaults:
#   HOSTFILE            the hosts; the same file on every host
#   LAUNCHER=pdsh       pdsh, openmpi, mpich or slurm start all hosts from one; with none you start the script on each host
#   NODE_RANK           only with LAUNCHER=none: the number of this host's line in HOSTFILE, from 0
#   MASTER_ADDR         address of the first host; required with LAUNCHER=none, otherwise found out by ssh
#   MASTER_PORT=29500   a free port on the first host
#   GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME   the network interface between the hosts. ssh passes on only NCCL_*, PYTHON* and UCX*:
#                       write other variables, one NAME=VALUE per line, into .deepspeed_env here or in your home folder
#   FLEXICLIP_DRY_RUN=1 only print the command

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
