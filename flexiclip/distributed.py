"""What the processes of a run exchange through torch.distributed: rows, objects, sums and means over all ranks.

Without an initialised process group every function is that of a single rank: nothing is copied or sent. Every function that
exchanges something must be called by all ranks.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this rank, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def block(total: int) -> range:
    """This rank's share of the items 0..total-1: neighbours, so that it reads few shards. Shares differ by one item at most."""
    return range(total * rank() // world(), total * (rank() + 1) // world())


def largest_block(total: int) -> int:
    """The size of the largest share: all ranks run as many forward passes, since ZeRO-3's gathers would hang otherwise."""
    return -(-total // world())


def gather_objects(value: T) -> list[T]:
    """The values of all ranks, in the order of the ranks, on every rank. The values are pickled."""
    if world() == 1:
        return [value]
    values: list[T | None] = [None] * world()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows [n, D] of all ranks joined in the order of the ranks, [sum of n, D]; n may differ from rank to rank."""
    if world() == 1:
        return rows
    sizes = gather_objects(len(rows))
    padded = rows.new_zeros(max(sizes), rows.shape[1])  # all_gather takes equal shapes; the padding is cut off below
    padded[: len(rows)] = rows
    return torch.cat([part[:size] for part, size in zip(all_rows(padded).split(max(sizes)), sizes, strict=True)])


def all_rows(x: Tensor) -> Tensor:
    """The rows of all ranks joined in the order of the ranks; every rank has the same number of rows."""
    if world() == 1:
        return x
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(world())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum over the ranks, in place."""
    if world() > 1:
        dist.all_reduce(x)
    return x


def reduce_rows(x: Tensor, rows: int) -> Tensor:
    """Sum x [W * rows, D] over the ranks and keep this rank's rows."""
    if world() == 1:
        return x
    own = x.new_empty(rows, x.shape[1])
    reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # renamed in torch 2.14
    reduce_scatter(own, x)
    return own


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows, ctx.total = rows.shape[0], rows.shape[0] * world()
        return sum_over_ranks(rows.sum()) / ctx.total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return (grad / ctx.total).expand(ctx.rows)


def mean_over_ranks(rows: Tensor) -> Tensor:
    """The mean of the rows [b] of all ranks, each with the same b; its gradient is 1 / (b W) for each of this rank's rows."""
    return _MeanOverRanks.apply(rows)
