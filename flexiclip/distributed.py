"""Exchanges rows, objects, sums and means between the ranks of a run through torch.distributed.

Without an initialized process group, every function behaves as with a single rank, and nothing is copied or sent. A
function that exchanges something must be called by all ranks.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this rank, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def block(total: int) -> range:
    """Return this rank's share of the items 0..total-1.

    The items of a share are neighbors, so that the rank reads few shards. The sizes of the shares differ by at most
    one.
    """
    return range(total * rank() // world(), total * (rank() + 1) // world())


def largest_block(total: int) -> int:
    """Return the size of the largest share.

    All ranks run the number of forward passes for that share, because ZeRO-3's gathers would hang otherwise.
    """
    return -(-total // world())


def gather_objects(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Return the values of all ranks on every rank, in the order of the ranks. The values are pickled.

    `group` is a group of all ranks that carries them; by default the one that was made first.
    """
    values = [value] * world()
    if len(values) > 1:
        dist.all_gather_object(values, value, group)
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows [n, D] of all ranks, in the order of the ranks, to [sum of n, D]. n may differ between ranks."""
    if world() == 1:
        return rows
    sizes = gather_objects(len(rows))
    padded = rows.new_zeros(max(sizes), rows.shape[1])  # all_gather needs equal shapes; the padding is cut off below
    padded[: len(rows)] = rows
    return torch.cat([part[:size] for part, size in zip(all_rows(padded).split(max(sizes)), sizes, strict=True)])


def all_rows(x: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, in the order of the ranks. Every rank must have the same number of rows."""
    if world() == 1:
        return x
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(world())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum a tensor over the ranks, in place, and return it."""
    if world() > 1:
        dist.all_reduce(x)
    return x


def reduce_rows(x: Tensor, rows: int) -> Tensor:
    """Sum x [W * rows, D] over the W ranks and return the rows [rows, D] that belong to this rank."""
    if world() == 1:
        return x
    own = x.new_empty(rows, x.shape[1])
    reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # renamed in torch 2.14
    reduce_scatter(own, x)
    return own


def mean_over_ranks(rows: Tensor) -> Tensor:
    """Return the mean of the rows [b] of all W ranks, which must have the same b.

    The gradient is 1 / (b W) for each of this rank's rows.
    """
    total = rows.shape[0] * world()
    own = rows.sum() / total
    return own - own.detach() + sum_over_ranks(rows.detach().sum()) / total  # the difference is 0 and carries the gradient
