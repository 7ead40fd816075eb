"""Scores every task of a data set at every length, from one pass over its images. Both entry points of run.py use it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from flexiclip_eval.data.images import ImageBlock, Record
from flexiclip_eval.data.labels import Splits
from flexiclip_eval.embeddings.embed import Encoding, evaluating, unit_rows
from flexiclip_eval.embeddings.store import Encoded
from flexiclip_eval.models.protocol import Length, Width, head_classes
from flexiclip_eval.rows import TaskInfo
from flexiclip_eval.tasks import TASKS
from flexiclip_eval.tasks.base import Context, Prepared, Result
from flexiclip_eval.tradeoffs import CascadePoint
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """The result of one task at one length and width."""

    info: TaskInfo
    length: Length
    width: Width
    result: Result
    n: int  # images scored
    images_per_s: float | None
    cascade: Sequence[CascadePoint] = ()  # without costs; only for retrieval at the cascade's long length


def score_tasks(
    encoding: Encoding, splits: Splits, pair: tuple[int, int] | None = None, widths: Sequence[Width] = (None,)
) -> Iterator[Score]:
    """Yield the scores of every task, width and length of a data set, from one pass over its images.

    No pass is made if the store has all embeddings. pair: the short and the long length of a cascade, if there is one. widths:
    how many columns of the embeddings are compared; None: all. All ranks call this, and all get the same scores.
    """
    device = encoding.device
    for prepared, images, taught in prepare_tasks(encoding, splits, widths):
        for length in encoding.lengths:
            image_z, speed = images.at[length]
            image_z = image_z.to(device)
            cascade: Sequence[CascadePoint] = ()
            if pair and prepared.rerank and length == pair[1]:
                cascade = prepared.rerank(images.at[pair[0]].rows.to(device), image_z)
            result = prepared.measure(image_z, taught.at[length].rows.to(device) if taught else image_z[:0])
            yield Score(prepared.info, length, images.width, result, len(images.records), speed, cascade)


@dataclass(frozen=True)
class EmbeddedSplit:
    """The embeddings of a split by length, with one row per record."""

    records: list[Record]
    at: dict[Length, Encoded]
    width: Width = None

    def narrow(self, width: Width) -> EmbeddedSplit:
        """Return the split with the first `width` columns of its rows, normalised again. None: with all columns."""
        at = {length: Encoded(_prefix(rows, width), speed) for length, (rows, speed) in self.at.items()}
        return replace(self, at=at, width=width)


def prepare_tasks(
    encoding: Encoding, splits: Splits, widths: Sequence[Width] = (None,)
) -> Iterator[tuple[Prepared, EmbeddedSplit, EmbeddedSplit | None]]:
    """Embed a data set in one pass, then yield each task at each width as (task, images, training split).

    The last two are embeddings; the training split is None if no task of the data set trains.
    """

    def embed(images: ImageBlock) -> EmbeddedSplit:
        at = encoding.images(images)
        return EmbeddedSplit(images.gather()[0], at)

    loaded = encoding.loaded
    with evaluating(loaded.model):
        taught = embed(splits.training) if splits.training is not None else None
        images = embed(splits.images)
        unread, training = len(splits.images.gather()[1]), taught.records if taught else ()
        embed_texts = lru_cache(maxsize=1)(encoding.texts)  # a task asks for the same texts at every width
        for task, width in itertools.product(splits.config.tasks, widths):
            embed_prefix = partial(_embed_prefix, embed_texts, width)
            context = Context(splits.config, task, images.records, unread, embed_prefix, head_classes(loaded), training)
            yield TASKS[task.kind](context), images.narrow(width), taught.narrow(width) if taught else None


def _embed_prefix(embed: Callable[[tuple[str, ...]], Tensor], width: Width, texts: Sequence[str]) -> Tensor:
    return _prefix(embed(tuple(texts)), width)


def _prefix(z: Tensor, width: Width) -> Tensor:
    """Return the first `width` columns of unit rows [N, D] as unit rows [N, width]; with None, return the rows unchanged."""
    return z if width is None else unit_rows(z[:, :width])
