"""Every task of a data set at every length, from one pass over its images: what both entries of run.py go through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from .choices.cascade import Reranked
from .data.images import ImageBlock
from .embeddings.embed import embed_images, evaluating
from .embeddings.prompts import embed_texts
from .embeddings.store import EmbeddingStore, Kept
from .models.protocol import EvalModel, Length
from .progress import Watch, silent
from .report.table import TaskInfo
from .tasks.base import Context, Result
from .tasks.registry import TASKS

Embedded = tuple[dict[Length, torch.Tensor], dict[Length, float | None]]  # unit rows [N, D] and images/s by length


@dataclass(frozen=True)
class Score:
    """A task at one length."""

    info: TaskInfo
    length: Length
    result: Result
    n: int
    images_per_s: float | None
    reranked: tuple[Reranked, ...] = ()  # retrieval at the long length of a cascade: what it finds


def score_tasks(
    loaded: EvalModel,
    images: ImageBlock,
    lengths: Sequence[Length],
    batch_size: int,
    device: torch.device,
    seen: Watch = silent,
    store: EmbeddingStore | None = None,
    pair: tuple[int, int] | None = None,
) -> Iterator[Score]:
    """The scores of every task and length of one data set, from one pass over its images, or none where the store has them.

    pair: the lengths of a cascade, if there is one.
    """
    with evaluating(loaded.model):
        sweep = partial(embed_images, loaded, images, batch_size=batch_size, device=device, watch=seen)
        embeddings, speeds = sweep(lengths) if store is None else _kept_or_made(images, lengths, sweep, store)
        records = images.gather()[0]
        texts = partial(embed_texts, loaded, batch_size=batch_size, device=device, store=store)
        for task in images.config.tasks:
            prepared = TASKS[task.kind](Context(images.config, task, records, texts))
            for length in lengths:
                image_z = embeddings[length].to(device)
                reranked: list[Reranked] = []
                if pair and prepared.rerank and length == pair[1]:
                    reranked = prepared.rerank(embeddings[pair[0]].to(device), image_z)
                yield Score(prepared.info, length, prepared.measure(image_z), len(records), speeds[length], tuple(reranked))


def _kept_or_made(
    images: ImageBlock, lengths: Sequence[Length], sweep: Callable[[Sequence[Length]], Embedded], store: EmbeddingStore
) -> Embedded:
    """The store's embeddings, and those that it lacks; all anew where the pass for these read other samples."""
    kept = store.read_images(images, lengths)
    missing = [length for length in lengths if length not in kept.rows]
    if not missing:
        return kept.rows, kept.speeds
    rows, speeds = sweep(missing)
    if not store.fits(images, kept):
        kept, (rows, speeds) = Kept(), sweep(lengths)
    store.write_images(images, rows, speeds)
    return kept.rows | rows, kept.speeds | speeds
