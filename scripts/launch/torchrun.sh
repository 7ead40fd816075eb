#!/usr/bin/env bash
# Starts one host's part of a run under torchrun. Start the same command on every host, in any order.
#
#   NNODES=4 RDZV_ENDPOINT=node1:29500 scripts/launch/torchrun.sh flexilit_b run_dir=/shared/runs/b [key=value ...]
#
# Variables, with their defaults:
#   NNODES=1             number of hosts, or MIN:MAX: the run starts with MIN, and restarts from its checkpoint if hosts join or leave
#   NPROC_PER_NODE=auto  ranks per host; auto means one per GPU
#   RDZV_ENDPOINT        HOST:PORT where the hosts meet, on one of them; required if NNODES is more than 1
#   RDZV_ID=flexiclip    distinguishes runs with the same endpoint
#   LOCAL_ADDR           this host's address, if its name does not resolve to one that the other hosts can reach
#   MAX_RESTARTS=3       how often lost ranks are started again
#   LAST_CALL_S=30       seconds that MIN hosts wait for more hosts
#   TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110   seconds that ranks have to save after a SIGTERM; older versions of torch always use 30
#   GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME   the network interface between the hosts
#   FLEXICLIP_DRY_RUN=1  only print the command

set -euo pipefail

stop() {
  printf 'torchrun.sh: %s\n' "$*" >&2
  exit 2
}

[ $# -gt 0 ] || stop "name a recipe: NNODES=2 RDZV_ENDPOINT=HOST:PORT torchrun.sh RECIPE [key=value ...]"
command -v torchrun >/dev/null || stop "torchrun is not on the PATH: activate the environment that flexiclip is installed in"

NNODES=${NNODES:-1}
[[ $NNODES =~ ^[0-9]+(:[0-9]+)?$ ]] || stop "NNODES=$NNODES must be a number of hosts, or MIN:MAX"
options=(--nnodes "$NNODES" --nproc-per-node "${NPROC_PER_NODE:-auto}" --max-restarts "${MAX_RESTARTS:-3}")
if [ "$NNODES" = 1 ]; then
  options+=(--standalone)
else
  [[ ${RDZV_ENDPOINT:-} == *?:[0-9]* ]] || stop "RDZV_ENDPOINT=${RDZV_ENDPOINT:-} must be HOST:PORT, the same on every host"
  conf=last_call_timeout=${LAST_CALL_S:-30}
  if [ -n "${LOCAL_ADDR:-}" ]; then
    options+=(--local-addr "$LOCAL_ADDR")
    # By default torchrun finds out by the host's own name whether the endpoint is on this host. That fails if LOCAL_ADDR is needed.
    if [ "$LOCAL_ADDR" = "${RDZV_ENDPOINT%:*}" ]; then conf+=,is_host=true; else conf+=,is_host=false; fi
  fi
  options+=(--rdzv-backend c10d --rdzv-endpoint "$RDZV_ENDPOINT" --rdzv-id "${RDZV_ID:-flexiclip}" --rdzv-conf "$conf")
fi

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}
command=(torchrun "${options[@]}" -m flexiclip train "$@")
if [ "${FLEXICLIP_DRY_RUN:-}" = 1 ]; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
