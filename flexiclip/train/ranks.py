"""The processes of a run, one per device, and the checks that they can work together.

The processes are started by torchrun, by deepspeed, or as a single plain process. `joined_ranks` connects them. `check_address`,
`check_shared_folder` and `check_ranks_agree` find mistakes that would otherwise show late or not at all: an address that other
hosts cannot reach, a run folder that not every host sees, and shards that differ between ranks.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from flexiclip.data.dataset import TrainSources
from flexiclip.data.remote import shard_name
from flexiclip.distributed import gather_objects
from flexiclip.errors import RunError, UserError
from flexiclip.files import write_whole, writing
from flexiclip.train.heartbeat import JOIN_S, Heartbeat
from flexiclip.train.signals import Interruptible, StopSignal

T = TypeVar("T")


def check_address() -> None:
    """Raise UserError if gloo would listen on an address that no other host can reach.

    Call it before the process group is made, because gloo would wait half an hour. Without GLOO_SOCKET_IFNAME, gloo listens on
    the address that the host's name resolves to, which /etc/hosts often sets to 127.0.1.1. A run on GPUs also has a gloo group,
    for the CPU side.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return
    name = socket.gethostname()
    try:
        addresses = sorted({str(info[4][0]) for info in socket.getaddrinfo(name, None)})
    except OSError:
        addresses = []
    if all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses):
        meaning = f"resolves to {', '.join(addresses)}" if addresses else "does not resolve"
        raise UserError(
            f"this host's name {name} {meaning}, where no other host reaches it: set GLOO_SOCKET_IFNAME (on GPUs also "
            "NCCL_SOCKET_IFNAME) to the network interface between the hosts, as `ip address` names it"
        )


TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process and its place among all of them.

    `control` is a gloo group with which the ranks exchange flags and objects on the CPU, so that GPUs do not wait for it.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print one line on stderr, only on the main rank."""
        if self.main:
            print(text, file=sys.stderr, flush=True)

    def agree(self, *flags: bool) -> list[bool]:
        """Return the flags, each of them true on every rank if it is true on any. Collective."""
        if self.world == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return [bool(vote) for vote in votes.tolist()]

    def collect(self, items: list[T]) -> list[T]:
        """Return the items of all ranks, in order of rank, on every rank. Collective."""
        return [item for part in gather_objects(items, self.control) for item in part]

    def first_result(self, works: bool, work: Callable[[], T]) -> T:
        """Run `work` on the ranks where `works` is true, and return the first result on every rank. Collective.

        If one rank raises UserError, all ranks raise it, so that none of them waits for a rank that has left.
        """
        outcome: list[T | UserError] = []
        if works:
            try:
                outcome = [work()]
            except UserError as error:
                outcome = [error]
        results = []
        for each in self.collect(outcome):
            if isinstance(each, UserError):
                raise each
            results.append(each)
        return results[0]

    def barrier(self) -> None:
        """Wait for every rank. Collective."""
        if self.world > 1:
            dist.barrier(group=self.control)


@dataclass(frozen=True)
class RunContext:
    """Where and how this rank computes and writes."""

    ranks: Ranks
    bf16: bool  # whether the towers run under bf16 autocast
    folder: Path  # the run folder

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return self.ranks.device

    def autocast(self) -> torch.autocast:
        """Return a context manager that gives the towers' forward pass its precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


@contextmanager
def joined_ranks(
    process_group: bool,
    threads: int | None = None,
    rank_timeout_s: float = 40.0,
    longest_wait_s: float = 0.0,
    stop: StopSignal | None = None,
) -> Iterator[Ranks]:
    """Connect this process with the other ranks, inside a `with` block. If a rank is lost, the others raise RunError and name it.

    process_group: make a process group even for a single process, which DeepSpeed needs.
    threads: number of torch threads on CPUs; by default the host's cores are divided by the ranks on it.
    rank_timeout_s: seconds of silence after which a rank counts as lost (heartbeat.py).
    longest_wait_s: how long one rank may keep the others waiting. Collectives time out after this or TIMEOUT, if that is longer.
    stop: handles signals inside and around the block. By default Ctrl-C interrupts, even while this rank waits for the others.

    Raises RunError if the ranks cannot connect, and UserError if other hosts cannot reach this one.
    """
    if "WORLD_SIZE" not in os.environ:  # a plain process; without these variables DeepSpeed would look for MPI
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        os.environ.update({**alone, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"})  # port 0: any free one
    rank, world, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = _device(local_rank, world, threads)
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = max(TIMEOUT, timedelta(seconds=longest_wait_s))
    if world == 1:
        if process_group:
            dist.init_process_group(backend, timeout=timeout)
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
            dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
            control = dist.new_group(backend="gloo", timeout=timeout)
            assert isinstance(control, dist.ProcessGroup), "this rank is a member of it"
            yield Ranks(rank, world, local_rank, device, control)
        dist.destroy_process_group()  # not after an error, when it would wait for collectives that never complete


def _device(local_rank: int, world: int, threads: int | None) -> torch.device:
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // _local_world(world)))
    return torch.device("cpu")


def _local_world(world: int) -> int:
    """Number of ranks on this host, as torchrun or deepspeed states it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world)


def _meet(rank: int) -> dist.Store:
    """Return the store that all ranks share, at MASTER_ADDR:MASTER_PORT."""
    try:
        return next(dist.rendezvous("env://", timeout=timedelta(seconds=JOIN_S)))[0]
    except (dist.DistError, TimeoutError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"rank {rank} does not meet the other ranks at {place} (MASTER_ADDR, MASTER_PORT): {reason}") from None


VISIBLE_WITHIN_S = 30.0
"""Seconds until another host must see a new file. Network file systems cache that a file does not exist."""


def check_shared_folder(folder: Path, ranks: Ranks, key: str = "run_dir", within_s: float = VISIBLE_WITHIN_S) -> None:
    """Raise UserError on every rank if one does not see the folder that the main rank made. Collective, and a barrier.

    With different folders the ranks would disagree about the checkpoint to go on from. key: the key of the recipe that names the
    folder.
    """
    if ranks.world == 1:
        return
    (token,) = ranks.collect([f".seen-{uuid.uuid4().hex}"] if ranks.main else [])
    if ranks.main:
        (folder / token).touch()
    ranks.barrier()
    blind = ranks.collect([] if _seen(folder, token, within_s) else [(ranks.rank, socket.gethostname())])
    if ranks.main:
        (folder / token).unlink()
    if blind:
        rank, host = blind[0]
        raise UserError(
            f"{key}={folder}: rank {rank} on host {host} does not see the folder that rank 0 made there: name one on a file "
            "system that all hosts share, by its full path, or keep the checkpoints in an object store (train.checkpoint_dir=s3://...)"
        )


def share_file(path: Path, ranks: Ranks) -> None:
    """Copy the main rank's file (a few megabytes) to the same path on every host. Collective.

    Raises UserError if it cannot be written.
    """
    (content,) = ranks.collect([path.read_bytes()] if ranks.main else [])
    if path.is_file() and path.read_bytes() == content:
        return
    with writing(f"run_dir={path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)


def _seen(folder: Path, name: str, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while True:
        with suppress(OSError):
            if name in os.listdir(folder):  # a listing makes NFS ask the server again; a look-up by name may not
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)


def data_order(sources: TrainSources | None) -> str | None:
    """Return a hash of all that decides the order of the samples, except for the seed. None for a sequential source.

    These are the names and sample counts of the shards and the weights of the sources. The shards' folder is not part of it, so
    that data can be moved.
    """
    if sources is None:
        return None
    digest = hashlib.sha256()
    for store, source in zip(sources.stores, sources.plan.sources, strict=True):
        names = [shard_name(url) for url in store.urls]
        digest.update(json.dumps([names, source.counts.tolist(), source.weight]).encode())
    return digest.hexdigest()


def check_ranks_agree(order: str | None, ranks: Ranks) -> None:
    """Raise UserError on every rank if some see other training data than the main rank, and name them. Collective.

    Every rank reads the indices of the shards itself. A rank that sees other shards or counts would follow another order, and
    some samples would silently be used twice and others never.
    """
    said = ranks.collect([(order, socket.gethostname())])
    others = [f"{rank} (on {host})" for rank, (each, host) in enumerate(said) if each != said[0][0]]
    if others:
        raise UserError(
            f"data.train: rank {', '.join(others)} sees other shards or sample counts than rank 0 (on {said[0][1]}): "
            "give every host the same shards, and run flexiclip data index on each"
        )
