"""What the ranks share: contiguous blocks of a data set, gathered again without padding or duplicates.

Without torch.distributed initialised every function is that of a single rank. Each gather must be called by all ranks.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """(rank, number of ranks)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def block(total: int) -> range:
    """This rank's items of `total`: neighbours, so that a rank reads few shards; sizes differ by one at most."""
    rank, world = rank_and_world()
    return range(total * rank // world, total * (rank + 1) // world)


def largest_block(total: int) -> int:
    """The largest block of any rank: all ranks run as many forward passes, or ZeRO-3's parameter gathers would hang."""
    return -(-total // rank_and_world()[1])


def gather_objects(value: T) -> list[T]:
    """Every rank's value, in the order of the ranks, on every rank."""
    world = rank_and_world()[1]
    if world == 1:
        return [value]
    values: list[T | None] = [None] * world
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def gather_rows(rows: Tensor) -> Tensor:
    """Every rank's rows [n, D], n differing from rank to rank, joined in the order of the ranks: [sum of n, D]."""
    world = rank_and_world()[1]
    if world == 1:
        return rows
    sizes = gather_objects(len(rows))
    padded = rows.new_zeros(max(sizes), rows.shape[1])  # all_gather takes equal shapes; the padding is cut off below
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
