"""The recall of a cascade: short embeddings choose K images for each caption, and long embeddings order these K (tradeoffs.py).

The images after the first K stay in the order of the short embeddings. Ties inside the shortlist count by their probability. If
images are tied at the end of the shortlist, torch.topk decides which of them enter it.
"""

from __future__ import annotations

import torch
from flexiclip_eval.tasks.search import KS, Answers, counts, hit_probability, over_blocks, texts_to_images
from flexiclip_eval.tradeoffs import Reranked, shortlists
from torch import Tensor

from flexiclip.distributed import gather_rows


def rerank(text_z: Tensor, short_z: Tensor, long_z: Tensor, known: Answers) -> list[Reranked]:
    """Return the image retrieval recalls at every K of tradeoffs.shortlists. All ranks must call this.

    text_z: unit rows of the captions [T, D]. short_z, long_z: unit rows of the images [N, D] at the two lengths. known: the
    images that answer each caption.
    """
    short, long = texts_to_images(text_z, short_z), texts_to_images(text_z, long_z)
    sizes = shortlists(known.gallery)
    inner = sizes[1:-1]  # the ends are the two lengths alone
    seen = torch.zeros(len(inner), known.gallery, dtype=torch.uint8, device=text_z.device)  # images in any shortlist, by K

    def search(start: int, stop: int) -> Tensor:
        query, item = known.of(start, stop)
        by_short, by_long = short(start, stop), long(start, stop)
        counted = counts(by_short, query, item)
        hits = [_hits(counted)]
        listed = by_short.topk(inner[-1] if inner else 0).indices
        for mark, size in zip(seen, inner, strict=True):
            mark[listed[:, :size].flatten()] = 1
            hits.append(_hits(_shortlisted(counted, by_long, listed[:, :size], query, item)))
        return torch.cat([*hits, _hits(counts(by_long, query, item))], dim=1)

    recalls = (
        over_blocks(search, known.queries, known.gallery, len(KS) * len(sizes), text_z).mean(0).reshape(-1, len(KS)).tolist()
    )
    shares = [0.0]
    if inner:
        shares += gather_rows(seen).reshape(-1, *seen.shape).amax(0).double().mean(1).tolist()
    names = [f"image_retrieval_recall@{k}" for k in KS]
    return [
        Reranked(size, dict(zip(names, recall, strict=True)), share)
        for size, recall, share in zip(sizes, recalls, [*shares, 1.0], strict=True)
    ]


def _shortlisted(
    by_short: tuple[Tensor, Tensor, Tensor], by_long: Tensor, listed: Tensor, query: Tensor, item: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what search.counts returns for a cascade: the images in `listed` [Q, K] by the long scores, then all others.

    by_short: the counts for the short scores alone, which hold for the captions without an answer in their shortlist. by_long:
    the long scores [Q, G]. query, item: the answers of these captions, as in search.counts.
    """
    raised = torch.full_like(by_long, -torch.inf).scatter_(1, listed, by_long.gather(1, listed))
    inside = torch.zeros(len(by_long), dtype=torch.bool, device=by_long.device)
    inside[query[torch.isfinite(raised[query, item])]] = True  # queries with an answer in their shortlist
    above, tied, positive = (
        torch.where(inside, new, old) for new, old in zip(counts(raised, query, item), by_short, strict=True)
    )
    return above, tied, positive


def _hits(counted: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return the probability of a hit among the first k, for each k of KS: float64 [Q, len(KS)]."""
    return torch.stack([hit_probability(*counted, k) for k in KS], dim=1)
