"""Searches a gallery with every query, in blocks over the ranks, and computes hits and ranks that ties do not bias.

Ties. A sort breaks ties by position, and positions follow the data, so a model that maps everything to one point could score
100 %. Here a hit is the PROBABILITY that a positive is among the first k when tied items are in random order. Such a model then
scores exactly chance, and without ties the number is the usual one. Scores are tied if they are equal to the last bit. Items with
equal embeddings must then have equal scores. A matrix product does not guarantee this, because it sums in another order at its
edges, so `first_twins` gives such items the same score.

Blocks. No array of the size queries x gallery is ever in memory. The ranks share whole blocks, whose size does not depend on the
number of ranks. Each score then comes from the same matrix product, and 1, 2 and 3 ranks give the same numbers. A data set of a
single block is searched by one rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flexiclip.distributed import block, gather_rows


def hit_probability(above: Tensor, tied: Tensor, positive: Tensor, k: int) -> Tensor:
    """Return the probability that a positive is among the first k items, [N] float64 in 0..1.

    above: [N], the number of items that score higher than the query's best positive. tied: [N], the number of items with the same
    score, the best positive included. positive: [N], the number of positives among the tied items, at least 1.
    """
    assert bool((positive >= 1).all()), "every query has a positive"
    assert bool((tied >= positive).all()), "and it is tied with itself"
    tied, negative = tied.double(), (tied - positive).double()
    slots = k - above
    miss = torch.ones_like(tied)
    for j in range(k):  # probability that the free slots, drawn one by one without replacement, all get negatives
        draw = (negative - j).clamp(min=0) / (tied - j).clamp(min=1)
        miss = torch.where(j < slots, miss * draw, miss)
    return 1 - miss


def mean_rank(above: Tensor, tied: Tensor, positive: Tensor) -> Tensor:
    """Return the rank of the best positive from 1, [N] float64, as the mean over every order of the tied items.

    The arguments are those of hit_probability.
    """
    return above + (tied + 1).double() / (positive + 1)


def first_twins(rows: Tensor) -> Tensor | None:
    """Return for each row the number of the first row that equals it bit by bit, int64 [N]; None if no two rows are equal.

    rows: float32 [N, D].
    """
    assert rows.dtype == torch.float32, "the bits of a row are read as int32"
    bits = rows.contiguous().view(torch.int32)
    code = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for column in bits.T:  # a polynomial hash modulo 2^64, by columns: it needs no array of the size of the rows
        code = code * 6364136223846793005 + column
    _, group = torch.unique(code, return_inverse=True)
    number = torch.arange(len(rows), device=rows.device)
    first = torch.full_like(number, len(rows)).scatter_reduce(0, group, number, "amin")[group]
    later = (first < number).nonzero()[:, 0]
    same = torch.cat([(bits[part] == bits[first[part]]).all(1) for part in later.split(4096)]) if len(later) else later.bool()
    first[later[~same]] = later[~same]  # equal codes of different rows
    return first if bool(same.any()) else None


KS = (1, 5, 10)  # the k of recall@k
CHUNK = 1 << 24  # scores that are in memory at once: 64 MB, whatever the size of the data set

Ties = Literal["chance", "topk"]
Block = Callable[[int, int], Tensor]
"""(start, stop) -> the scores of the queries start..stop-1 with the whole gallery, float32 [stop - start, G]."""


@dataclass(frozen=True)
class Answers:
    """The items that answer each query: item[p] answers query[p]. The pairs are sorted by query."""

    query: Tensor  # int64 [P]
    item: Tensor  # int64 [P]
    queries: int  # number of queries
    gallery: int  # number of items

    def of(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return (query, item) of the pairs of the queries start..stop-1, with the queries counted from start."""
        first, last = torch.searchsorted(self.query, torch.tensor([start, stop], device=self.query.device)).tolist()
        return self.query[first:last] - start, self.item[first:last]


@dataclass(frozen=True)
class Found:
    """The result of a search: for each query, its hits and the rank of its best positive."""

    hits: Tensor  # float64 [Q, len(KS)] in 0..1: the probability of a hit among the first k
    rank: Tensor  # float64 [Q], from 1

    def recalls(self) -> dict[int, float]:
        """Return {k: recall@k in 0..1}, the mean of the hits."""
        return {k: self.hits[:, i].mean().item() for i, k in enumerate(KS)}


def answers(query: Tensor, item: Tensor, queries: int, gallery: int) -> Answers:
    """Return the Answers for pairs (query[p], item[p]) in any order, int64 [P]."""
    order = torch.argsort(query, stable=True)
    return Answers(query[order], item[order], queries, gallery)


def texts_to_images(text_z: Tensor, image_z: Tensor) -> Block:
    """Return the scores of captions with all images, by blocks of captions. text_z [T, D], image_z [N, D]: unit rows."""
    return lambda start, stop: text_z[start:stop] @ image_z.T


def images_to_texts(image_z: Tensor, text_z: Tensor) -> Block:
    """Return the scores of images with all captions, by blocks of images. image_z [N, D], text_z [T, D]: unit rows.

    The product is the same as in the other direction, so that both directions see the same bits.
    """
    return lambda start, stop: (text_z @ image_z[start:stop].T).T


def find(scores: Block, gallery_z: Tensor, known: Answers, ties: Ties) -> Found:
    """Search the gallery with every query. All ranks must call this, and all get the same result.

    gallery_z: unit rows [G, D], which show which items are the same. ties: how equal scores count (TaskConfig.ties).
    """
    twins = first_twins(gallery_z) if ties == "chance" else None

    def search(start: int, stop: int) -> Tensor:
        each = scores(start, stop)
        if twins is not None:
            each = each[:, twins]
        return _hits_and_rank(each, *known.of(start, stop), ties)

    rows = over_blocks(search, known.queries, known.gallery, len(KS) + 1, gallery_z)
    return Found(rows[:, : len(KS)], rows[:, len(KS)])


def over_blocks(search: Callable[[int, int], Tensor], queries: int, gallery: int, columns: int, like: Tensor) -> Tensor:
    """Call `search` for blocks of queries, and return its rows for all queries on every rank: float64 [Q, columns].

    search: (start, stop) -> the rows of the queries start..stop-1. The ranks share the blocks. like: a tensor on the device of
    the rows. All ranks must call this.
    """
    step = max(1, CHUNK // gallery)
    starts = range(0, queries, step)
    mine = [search(starts[i], min(queries, starts[i] + step)) for i in block(len(starts))]
    return gather_rows(torch.cat(mine) if mine else torch.empty(0, columns, dtype=torch.float64, device=like.device))


def counts(scores: Tensor, query: Tensor, item: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the numbers of items above the best positive, of items tied with it, and of positives among these, int64 [Q] each.

    scores: [Q, G]; item[p] answers query[p], and every query has an answer. Counting takes linear time and needs no sort.
    """
    mine = scores[query, item]
    best = scores.new_full((len(scores),), -torch.inf).scatter_reduce(0, query, mine, "amax")
    above = (scores > best[:, None]).sum(1)
    tied = (scores == best[:, None]).sum(1)
    positive = torch.zeros_like(above).scatter_add(0, query, (mine == best[query]).long())
    return above, tied, positive


def hits_at(above: Tensor, tied: Tensor, positive: Tensor) -> Tensor:
    """Return the probability of a hit among the first k for each k of KS: float64 [Q, len(KS)], from what `counts` returns."""
    return torch.stack([hit_probability(above, tied, positive, k) for k in KS]).T


def _hits_and_rank(scores: Tensor, query: Tensor, item: Tensor, ties: Ties) -> Tensor:
    """Return the hits at KS and the rank of the best positive for each query, float64 [Q, len(KS) + 1]."""
    counted = counts(scores, query, item)
    hits = hits_at(*counted)
    if ties == "topk":
        unsure = ((hits > 0) & (hits < 1)).any(1).nonzero()[:, 0]
        right = torch.zeros_like(scores, dtype=torch.bool)
        right[query, item] = True
        for column, k in enumerate(KS):
            first = scores[unsure].topk(min(k, scores.shape[1])).indices
            hits[unsure, column] = right[unsure].gather(1, first).any(1).double()
    return torch.cat([hits, mean_rank(*counted)[:, None]], dim=1)
