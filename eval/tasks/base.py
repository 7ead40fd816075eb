"""The interface of a task (Context, Prepared, Result), and examples of retrieval for the report.

A task is prepared once for a data set and a model, and is then measured at each length from image embeddings alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from flexiclip_eval.data.images import Record
from flexiclip_eval.rows import Details, Example, TaskInfo
from flexiclip_eval.suites.dataset import DatasetConfig
from flexiclip_eval.suites.task import TaskConfig
from flexiclip_eval.tasks.search import Answers, Block
from flexiclip_eval.tradeoffs import CascadePoint
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """Everything that a task may use when it is prepared."""

    dataset: DatasetConfig
    task: TaskConfig
    records: Sequence[Record]
    """The records of the images that could be read, in the order of the rows of embeddings."""
    unread: int
    """The number of images that could not be read and so have no record."""
    embed_texts: Callable[[Sequence[str]], Tensor]
    """Captions or prompts -> unit rows [T, D] float32. All ranks must call it, and all get the same rows."""
    head: tuple[str, ...] | None = None
    """The classes if the model is a classifier, else None. The rows of a classifier's images are logits scaled to length 1."""
    training: Sequence[Record] = ()
    """The records of the training split, if a task of the data set trains."""

    @property
    def name(self) -> str:
        """The `dataset` of the rows of this task."""
        return self.dataset.row_name(self.task)


@dataclass(frozen=True)
class Result:
    """The result of a task at one length."""

    metrics: dict[str, float]
    """Shares in 0..1, and median ranks from 1. The names are those of CLIP_benchmark for the metrics that it has."""
    details: Details = field(default_factory=Details)
    """What the report shows in addition to the metrics."""
    errors: dict[str, float] = field(default_factory=dict)
    """The standard errors of those metrics for which one is known, in the same unit."""
    hits: Tensor | None = None
    """The primary metric of each query, float64 [Q] on the CPU, whose mean is the metric; with it, lengths are compared in pairs.
    None if the metric is not a mean over queries."""


@dataclass(frozen=True)
class Prepared:
    """A task that is ready to be measured. All ranks must call its functions, which return the same on every rank."""

    info: TaskInfo
    measure: Callable[[Tensor, Tensor], Result]
    """(unit rows of the images [N, D], those of the training split [M, D]) -> the result. M is 0 if no task trains."""
    rerank: Callable[[Tensor, Tensor], list[CascadePoint]] | None = None
    """Only for retrieval: (unit rows of the images at a short length [N, D], at a long length [N, D]) -> a cascade, no costs."""


EXAMPLES, SHOWN = 24, 5  # captions in the report, and images shown for each


def found_examples(scores: Block, known: Answers, ranks: Tensor, captions: list[str]) -> list[Example]:
    """Choose at most EXAMPLES captions for the report, spread over the data set; half of them failed, if enough have failed.

    scores: captions with images. ranks: the rank of each caption's best image [T], where ties count by their mean rank. A caption
    failed if its rank is above 1.
    """
    wrong, right = (ranks > 1).nonzero()[:, 0], (ranks <= 1).nonzero()[:, 0]
    half = EXAMPLES // 2
    wrongs = min(len(wrong), max(half, EXAMPLES - len(right)))
    chosen = torch.cat([_spread(wrong, wrongs), _spread(right, min(len(right), EXAMPLES - wrongs))]).sort().values
    examples = []
    for number in chosen.tolist():
        positives = known.of(number, number + 1)[1].tolist()
        best = scores(number, number + 1)[0].topk(min(SHOWN, known.gallery)).indices.tolist()
        examples.append(Example(caption=captions[number], positives=positives, ranked=best, rank=int(ranks[number])))
    return examples


def _spread(numbers: Tensor, count: int) -> Tensor:
    """Return `count` of the numbers at equal distances."""
    return numbers[[i * len(numbers) // count for i in range(count)]] if count else numbers[:0]
