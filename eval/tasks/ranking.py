"""Ranks without a bias from ties.

A sort breaks ties by position, and positions follow the data: a model that maps everything to one point can then score 100 %.
Here a hit is the PROBABILITY of a positive among the first k when tied items stand in random order, so that such a model scores
chance, exactly, and without ties the number is the ordinary one.
"""

from __future__ import annotations

import torch
from torch import Tensor

TIE = 1e-6
"""Cosines nearer than this are tied: the rounding of a float32 dot product, which varies with the batch an item came in."""


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
