"""What every task is: prepared once for a data set and a model, then measured at each length from image embeddings alone.

A few captions and the images that they found, right and wrong, for a reader's eyes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flexiclip_eval.data.images import Record
from flexiclip_eval.rows import TaskInfo
from flexiclip_eval.suites.dataset import DatasetConfig
from flexiclip_eval.suites.task import TaskConfig
from flexiclip_eval.tasks.search import Answers, Block
from flexiclip_eval.tradeoffs import Reranked
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """What a task may use. embed_texts: texts -> unit rows [T, D] float32, on every rank; captions and prompts alike."""

    dataset: DatasetConfig
    task: TaskConfig
    records: Sequence[Record]
    """Of the images that could be read, in the order of the rows of embeddings."""
    unread: int
    """Images that could not be read, and so have no record."""
    embed_texts: Callable[[Sequence[str]], Tensor]
    head: tuple[str, ...] | None = None
    """The classes of a model that is a classifier: its rows of images are logits, scaled to length 1."""
    training: Sequence[Record] = ()
    """Those of the training split, where a task of the data set trains."""

    @property
    def name(self) -> str:
        """The `dataset` of the task's rows."""
        return self.dataset.row_name(self.task)


@dataclass(frozen=True)
class Result:
    """A task at one length."""

    metrics: dict[str, float]
    """In 0..1 where they are shares; the names are CLIP_benchmark's where it has one."""
    details: dict[str, Any] = field(default_factory=dict)
    """For the report alone, plain data: `per_class` {class: recall}; `found` [{caption, positives, ranked, rank}],
    images by their place among the records."""


@dataclass(frozen=True)
class Prepared:
    """A task of one data set and model. Each callable must be called by all ranks, and gives all of them the same."""

    info: TaskInfo
    measure: Callable[[Tensor, Tensor], Result]
    """(unit rows of the images [N, D], those of the training split [M, D], M = 0 where no task trains) -> its result."""
    rerank: Callable[[Tensor, Tensor], list[Reranked]] | None = None
    """Retrieval: unit rows of the images at a short and at a long length -> what a cascade of the two finds."""


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
