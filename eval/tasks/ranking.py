"""Ranks without a bias from ties.

A sort breaks ties by position, and positions follow the data: a model that maps everything to one point can then score 100 %.
Here a hit is the PROBABILITY of a positive among the first k when tied items stand in random order, so that such a model scores
chance, exactly, and without ties the number is the ordinary one.

Scores are tied when they are equal to the last bit. Items with equal embeddings must then have equal scores, which a matrix
product does not promise (its edges sum in another order): `first_twins` gives them one score.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hit_probability(above: Tensor, tied: Tensor, positive: Tensor, k: int) -> Tensor:
    """Probability that the first k items hold a positive, [N] float64 in 0..1.

    above: [N], items that score higher than the query's best positive. tied: [N], items that score the same, itself included.
    positive: [N], the positives among the tied ones, at least 1.
    """
    assert bool((positive >= 1).all()), "every query has a positive"
    assert bool((tied >= positive).all()), "and it is tied with itself"
    tied, negative = tied.double(), (tied - positive).double()
    slots = k - above
    miss = torch.ones_like(tied)
    for j in range(k):  # draw the free slots one by one, without replacement: all of them negatives
        draw = (negative - j).clamp(min=0) / (tied - j).clamp(min=1)
        miss = torch.where(j < slots, miss * draw, miss)
    return 1 - miss


def mean_rank(above: Tensor, tied: Tensor, positive: Tensor) -> Tensor:
    """Rank of the best positive from 1, [N] float64; of tied items the mean over every order. Arguments: hit_probability."""
    return above + (tied + 1).double() / (positive + 1)


def first_twins(rows: Tensor) -> Tensor | None:
    """The number of the first row that equals each bit by bit, int64 [N]; None when no two are equal. rows: float32 [N, D]."""
    assert rows.dtype == torch.float32, "the bits of a row are read as int32"
    bits = rows.contiguous().view(torch.int32)
    code = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for column in bits.T:  # a polynomial hash modulo 2^64, column by column: nothing of the size of the rows is held
        code = code * 6364136223846793005 + column
    _, group = torch.unique(code, return_inverse=True)
    number = torch.arange(len(rows), device=rows.device)
    first = torch.full_like(number, len(rows)).scatter_reduce(0, group, number, "amin")[group]
    later = (first < number).nonzero()[:, 0]
    same = torch.cat([(bits[part] == bits[first[part]]).all(1) for part in later.split(4096)]) if len(later) else later.bool()
    first[later[~same]] = later[~same]  # equal codes of different rows
    return first if bool(same.any()) else None
