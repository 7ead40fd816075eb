"""Ranks without a bias from ties.

A sort breaks ties by position, and positions follow the data: a model that maps everything to one point can then score 100 %.
Here a hit is the PROBABILITY of a positive among the first k when tied items stand in random order, so that such a model scores
chance, exactly, and without ties the number is the ordinary one.

Scores are tied when they are equal to the last bit. Items with equal embeddings must then have equal scores, which a matrix
product does not promise (its edges sum in another order): `first_twins` gives them one score.

Searching a gallery with every query, in blocks: nothing of the size queries x gallery is ever held.

The ranks share whole blocks, whose size does not depend on their number: each score then comes from the same matrix product, and
1, 2 and 3 ranks give the same numbers. A data set of a single block is searched by one rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flexiclip.distributed import block, gather_rows


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


KS = (1, 5, 10)
CHUNK = 1 << 24  # scores held at once: 64 MB, whatever the size of the data set

Ties = Literal["chance", "topk"]
Block = Callable[[int, int], Tensor]
"""The scores of queries start..stop with the whole gallery, float32 [stop - start, G]."""


@dataclass(frozen=True)
class Answers:
    """Which items answer which query: pair p says that item[p] answers query[p], int64 [P], sorted by query."""

    query: Tensor
    item: Tensor
    queries: int
    gallery: int

    def of(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(query, item) of the pairs of queries start..stop, the queries counted from start."""
        first, last = torch.searchsorted(self.query, torch.tensor([start, stop], device=self.query.device)).tolist()
        return self.query[first:last] - start, self.item[first:last]


@dataclass(frozen=True)
class Found:
    """hits: for each query the worth of its first k, k of KS, in 0..1; rank: of its best positive, from 1. Float64."""

    hits: Tensor
    rank: Tensor

    def recalls(self) -> dict[int, float]:
        """Mean hit at each k."""
        return {k: self.hits[:, i].mean().item() for i, k in enumerate(KS)}


def answers(query: Tensor, item: Tensor, queries: int, gallery: int) -> Answers:
    """Answers of pairs in any order."""
    order = torch.argsort(query, stable=True)
    return Answers(query[order], item[order], queries, gallery)


def texts_to_images(text_z: Tensor, image_z: Tensor) -> Block:
    """Scores of captions with all images. text_z [T, D], image_z [N, D] unit rows."""
    return lambda start, stop: text_z[start:stop] @ image_z.T


def images_to_texts(image_z: Tensor, text_z: Tensor) -> Block:
    """Scores of images with all captions: the same product as the other direction, so that both see the same bits."""
    return lambda start, stop: (text_z @ image_z[start:stop].T).T


def find(scores: Block, gallery_z: Tensor, known: Answers, ties: Ties) -> Found:
    """Search with every query. gallery_z: unit rows [G, D], to see which items are the same. Called by all ranks."""
    twins = first_twins(gallery_z) if ties == "chance" else None

    def search(start: int, stop: int) -> Tensor:
        each = scores(start, stop)
        if twins is not None:
            each = each[:, twins]
        return _standing(each, *known.of(start, stop), ties)

    rows = over_blocks(search, known.queries, known.gallery, len(KS) + 1, gallery_z)
    return Found(rows[:, : len(KS)], rows[:, len(KS)])


def over_blocks(search: Callable[[int, int], Tensor], queries: int, gallery: int, columns: int, like: Tensor) -> Tensor:
    """float64 [Q, columns] from `search`, which gives the rows of queries start..stop; the ranks share the blocks."""
    step = max(1, CHUNK // gallery)
    starts = range(0, queries, step)
    mine = [search(starts[i], min(queries, starts[i] + step)) for i in block(len(starts))]
    return gather_rows(torch.cat(mine) if mine else torch.empty(0, columns, dtype=torch.float64, device=like.device))


def counts(scores: Tensor, query: Tensor, item: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Items above the best positive, tied with it, and the positives among those, int64 [Q] each. No sort: counting is linear.

    scores: [Q, G]; item[p] answers query[p], and every query has an answer.
    """
    mine = scores[query, item]
    best = scores.new_full((len(scores),), -torch.inf).scatter_reduce(0, query, mine, "amax")
    above = (scores > best[:, None]).sum(1)
    tied = (scores == best[:, None]).sum(1)
    positive = torch.zeros_like(above).scatter_add(0, query, (mine == best[query]).long())
    return above, tied, positive


def _standing(scores: Tensor, query: Tensor, item: Tensor, ties: Ties) -> Tensor:
    """The hits at KS and the rank of each query, float64 [Q, KS + 1]."""
    counted = counts(scores, query, item)
    hits = [hit_probability(*counted, k) for k in KS]
    if ties == "topk":
        unsure = torch.stack([(hit > 0) & (hit < 1) for hit in hits]).any(0).nonzero()[:, 0]
        for hit, k in zip(hits, KS, strict=True):
            hit[unsure] = topk_hits(scores[unsure], unsure, query, item, k)
    return torch.stack([*hits, mean_rank(*counted)], dim=1)


def topk_hits(scores: Tensor, rows: Tensor, query: Tensor, item: Tensor, k: int) -> Tensor:
    """1 where torch.topk puts an answer among the first k, else 0: float64 [R]. scores: [R, G] of the queries `rows`."""
    first = scores.topk(min(k, scores.shape[1])).indices
    place = {int(row): i for i, row in enumerate(rows)}
    hit = torch.zeros(len(rows), dtype=torch.float64, device=scores.device)
    for q, answer in zip(query.tolist(), item.tolist(), strict=True):
        if q in place and bool((first[place[q]] == answer).any()):
            hit[place[q]] = 1.0
    return hit
