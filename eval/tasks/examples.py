"""A few captions and the images that they found, right and wrong, for a reader's eyes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .search import Answers, Block

EXAMPLES, SHOWN = 24, 5


def found_examples(scores: Block, known: Answers, ranks: Tensor, captions: list[str]) -> list[dict[str, Any]]:
    """At most EXAMPLES captions, spread over the data set, half of them wrong at rank 1 where there are as many.

    scores: of captions with images; ranks: of each caption's best image [T], ties included. Each entry: caption, positives and
    ranked (the SHOWN best) as rows of the embeddings, and rank, from 1.
    """
    wrong, right = (ranks > 1).nonzero()[:, 0], (ranks <= 1).nonzero()[:, 0]
    half = EXAMPLES // 2
    wrongs = min(len(wrong), max(half, EXAMPLES - len(right)))
    chosen = torch.cat([_spread(wrong, wrongs), _spread(right, min(len(right), EXAMPLES - wrongs))]).sort().values
    examples = []
    for number in chosen.tolist():
        positives = known.of(number, number + 1)[1]
        best = scores(number, number + 1)[0].topk(min(SHOWN, known.gallery)).indices
        entry = {"caption": captions[number], "positives": positives.tolist(), "ranked": best.tolist()}
        examples.append({**entry, "rank": int(ranks[number])})
    return examples


def _spread(numbers: Tensor, count: int) -> Tensor:
    """`count` of the numbers, at equal distances."""
    return numbers[[i * len(numbers) // count for i in range(count)]] if count else numbers[:0]
