"""The processes of a run: one a device, started by torchrun, by deepspeed, or as a single plain process."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from flexiclip.errors import RunError
from flexiclip.train.processes.address import check_address
from flexiclip.train.processes.heartbeat import JOIN_S, Heartbeat
from flexiclip.train.processes.signals import Interruptible, StopSignal

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


@contextmanager
def joined_ranks(
    process_group: bool,
    threads: int | None = None,
    rank_timeout_s: float = 40.0,
    patience_s: float = 0.0,
    stop: StopSignal | None = None,
) -> Iterator[Ranks]:
    """Join the run for the time of a block. When a rank is lost the others leave the block by a RunError that names it.

    process_group: make one even for a single process, as DeepSpeed needs. threads: torch threads on CPU. rank_timeout_s: see
    heartbeat.py. patience_s: seconds that a rank may keep the others waiting without being at fault, beyond TIMEOUT. stop: what
    listens to signals for the block and around it; by default Ctrl-C interrupts, also while this rank waits for the others.
    Raises RunError when the ranks do not come together, UserError when this host has no address for the others.
    """
    if "WORLD_SIZE" not in os.environ:  # a plain process; DeepSpeed would look for MPI
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
        os.environ.update({**{name: str(value) for name, value in alone.items()}, "MASTER_PORT": str(_free_port())})
    rank, world, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = _device(local_rank, world, threads)
    timeout = max(TIMEOUT, timedelta(seconds=patience_s))
    if world == 1:
        if process_group:
            dist.init_process_group(_backend(device), timeout=timeout)
        try:
            yield Ranks(rank, world, local_rank, device)
        finally:
            if process_group:
                dist.destroy_process_group()
        return
    if _local_world(world) < world:
        check_address()
    with nullcontext() if stop is not None else Interruptible():
        store = _meet(rank)
        with Heartbeat(store, rank, world, rank_timeout_s) as heartbeat, stop.translating() if stop else nullcontext():
            if stop is not None:
                stop.before_leaving.append(heartbeat.say_stopped)
            dist.init_process_group(_backend(device), store=store, rank=rank, world_size=world, timeout=timeout)
            yield Ranks(rank, world, local_rank, device, dist.new_group(backend="gloo", timeout=timeout))
        dist.destroy_process_group()  # not after an error: it would wait for collectives that nobody completes


def _device(local_rank: int, world: int, threads: int | None) -> torch.device:
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // _local_world(world)))
    return torch.device("cpu")


def _local_world(world: int) -> int:
    """Ranks on this host, as torchrun or deepspeed counts them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world)


def _backend(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"


def _meet(rank: int) -> Any:
    """The store that all ranks share, at MASTER_ADDR:MASTER_PORT."""
    try:
        return next(dist.rendezvous("env://", timeout=timedelta(seconds=JOIN_S)))[0]
    except (dist.DistError, TimeoutError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"rank {rank} does not meet the other ranks at {place} (MASTER_ADDR, MASTER_PORT): {reason}") from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
