"""What the losses exchange: the rows of all ranks, and sums over them. On a single rank nothing is copied or sent."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This one's number."""
    return dist.get_rank() if world() > 1 else 0


def all_rows(x: Tensor) -> Tensor:
    """The rows of all ranks, in order of rank; one rank's own are not copied."""
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
    """The mean of all ranks' rows [b], every rank with the same b; its gradient is 1 / (b W) for each of this rank's."""
    return _MeanOverRanks.apply(rows)
