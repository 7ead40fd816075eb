"""Zero-shot retrieval: recall@k in both directions, as CLIP_benchmark counts it.

A query is a hit when ANY of its positives stands among the first k. An image may own several captions and a caption several
images: captions are told apart by their text, so a caption that stands under three images is one query with three positives.
`image_retrieval_recall` is text -> image, `text_retrieval_recall` image -> text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..report.table import TaskInfo
from .base import Context, Prepared, Result
from .ranking import TIE, hit_probability

KS = (1, 5, 10)
CHUNK = 1 << 24  # similarities held at once: 64 MB, whatever the size of the data set


@dataclass(frozen=True)
class Pairs:
    """Who belongs to whom: `captions` holds each text once; pair p joins image `image[p]` and caption `caption[p]`, int64 [P]."""

    captions: list[str]
    image: Tensor
    caption: Tensor
    images: int


def prepare_retrieval(context: Context) -> Prepared:
    """Captions find images, and images captions."""
    pairs = pair_captions([record.captions for record in context.records])
    text_z = context.embed_texts(pairs.captions)
    info = TaskInfo(context.name, "zeroshot_retrieval", retrieval_chance(pairs), captions=len(pairs.captions))
    return Prepared(info, lambda image_z: Result(retrieval_metrics(image_z, text_z, pairs)))


def pair_captions(captions: Sequence[Sequence[str]]) -> Pairs:
    """The pairs of a data set; captions[i] are the texts of image i."""
    number: dict[str, int] = {}
    pairs = [(i, number.setdefault(text, len(number))) for i, texts in enumerate(captions) for text in dict.fromkeys(texts)]
    image, caption = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return Pairs(list(number), image, caption, len(captions))


def retrieval_metrics(image_z: Tensor, text_z: Tensor, pairs: Pairs) -> dict[str, float]:
    """Recalls in 0..1 from unit rows: image_z [N, D], text_z [T, D], one row a distinct caption."""
    image, caption = pairs.image.to(image_z.device), pairs.caption.to(image_z.device)
    found_images = _recalls(text_z, image_z, caption, image)
    found_texts = _recalls(image_z, text_z, image, caption)
    return {
        **{f"image_retrieval_recall@{k}": found_images[k] for k in KS},
        **{f"text_retrieval_recall@{k}": found_texts[k] for k in KS},
    }


def retrieval_chance(pairs: Pairs) -> dict[str, float]:
    """The same recalls for a model that knows nothing: every item of the gallery tied."""
    chance = {}
    for name, query, gallery, queries in (
        ("image_retrieval_recall", pairs.caption, pairs.images, len(pairs.captions)),
        ("text_retrieval_recall", pairs.image, len(pairs.captions), pairs.images),
    ):
        positive = torch.bincount(query, minlength=queries)
        none, everything = torch.zeros_like(positive), torch.full_like(positive, gallery)
        for k in KS:
            chance[f"{name}@{k}"] = hit_probability(none, everything, positive, k).mean().item()
    return chance


def _recalls(queries: Tensor, gallery: Tensor, query: Tensor, item: Tensor) -> dict[int, float]:
    """Mean hit at each k. queries [Q, D], gallery [G, D]; pair p says that item[p] of the gallery answers query[p] ([P] each)."""
    order = torch.argsort(query, stable=True)
    query, item = query[order], item[order]
    step = max(1, CHUNK // len(gallery))
    hits: dict[int, list[Tensor]] = {k: [] for k in KS}
    for start in range(0, len(queries), step):
        scores = queries[start : start + step] @ gallery.T
        first, last = torch.searchsorted(query, torch.tensor([start, start + len(scores)], device=query.device)).tolist()
        counts = _count(scores, query[first:last] - start, item[first:last])
        for k in KS:
            hits[k].append(hit_probability(*counts, k))
    return {k: torch.cat(parts).mean().item() for k, parts in hits.items()}


def _count(scores: Tensor, query: Tensor, item: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Items above the best positive, tied with it, and the positives among those, int64 [Q] each. No sort: counting is linear."""
    mine = scores[query, item]
    best = torch.full_like(scores[:, 0], -torch.inf).scatter_reduce(0, query, mine, "amax")
    limit = best[:, None]
    above = (scores > limit + TIE).sum(1)
    tied = (scores >= limit - TIE).sum(1) - above
    positive = torch.zeros_like(above).scatter_add(0, query, (mine >= best[query] - TIE).long())
    return above, tied, positive
