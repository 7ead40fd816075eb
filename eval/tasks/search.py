"""Searching a gallery with every query, in blocks: nothing of the size queries x gallery is ever held.

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

from .ranking import first_twins, hit_probability, mean_rank

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
