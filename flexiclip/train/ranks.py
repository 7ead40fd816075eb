"""The processes of a run: one a device, started by torchrun, by deepspeed, or as a single plain process."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process among all. `control` is a gloo group for host-side agreement, so that a GPU never waits for it."""

    rank: int
    world: int
    local_rank: int
    device: torch.device
    control: Any = None

    @property
    def main(self) -> bool:
        """True on the one rank that writes files and prints."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """One line on stderr, from the main rank."""
        if self.main:
            print(text, file=sys.stderr, flush=True)

    def agree(self, *flags: bool) -> list[bool]:
        """Each flag, true on every rank as soon as it is true on one."""
        if self.world == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return [bool(vote) for vote in votes.tolist()]

    def collect(self, items: list[Any]) -> list[Any]:
        """The items of all ranks, in order of rank, on every rank."""
        if self.world == 1:
            return items
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, items, group=self.control)
        return [item for part in parts for item in part]

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world > 1:
            dist.barrier(group=self.control)


def start_ranks(process_group: bool, threads: int | None = None) -> Ranks:
    """Join the run. process_group: make one even for a single process, as DeepSpeed needs. threads: torch threads on CPU."""
    if "WORLD_SIZE" not in os.environ:  # a plain process; DeepSpeed would look for MPI
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
        os.environ.update({**{name: str(value) for name, value in alone.items()}, "MASTER_PORT": str(_free_port())})
    rank, world, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world)  # torchrun, deepspeed
        torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // local_world))
    if (process_group or world > 1) and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    control = dist.new_group(backend="gloo") if world > 1 else None
    return Ranks(rank, world, local_rank, device, control)


def stop_ranks() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
