"""Scores every task of a data set at every length, from one pass over its images. Both entry points of run.py use it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from flexiclip_eval.data.images import ImageBlock, Record
from flexiclip_eval.data.labels import Splits
from flexiclip_eval.embeddings.embed import embed_images, embed_texts, evaluating, unit_rows
from flexiclip_eval.embeddings.store import EmbeddingStore, Kept
from flexiclip_eval.models.protocol import EvalModel, Length, Width, head_classes
from flexiclip_eval.rows import TaskInfo
from flexiclip_eval.tasks import TASKS
from flexiclip_eval.tasks.base import Context, Prepared, Result
from flexiclip_eval.tradeoffs import Reranked
from torch import Tensor

from flexiclip.progress import Watch, silent

Embedded = tuple[dict[Length, Tensor], dict[Length, float | None]]  # by length: unit rows [N, D], and images/s

EmbedTexts = Callable[[Sequence[str]], Tensor]  # texts -> unit rows [T, D]


@dataclass(frozen=True)
class Encoding:
    """A model with all that encodes images and texts: the lengths, the batch size, the device and the store of embeddings.

    `seen` watches the images go by, to show progress. Without a `store`, no embedding is read from or written to disk.
    """

    loaded: EvalModel
    lengths: Sequence[Length]
    batch_size: int
    device: torch.device
    seen: Watch[Tensor] = silent
    store: EmbeddingStore | None = None

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts: unit rows [T, D] float32."""
        return embed_texts(self.loaded, texts, batch_size=self.batch_size, device=self.device, store=self.store)

    def images(self, images: ImageBlock, lengths: Sequence[Length]) -> Embedded:
        """Encode images at `lengths` in one pass, without the store. Returns unit rows [N, D] float32 and images/s, by length."""
        return embed_images(self.loaded, images, lengths, batch_size=self.batch_size, device=self.device, watch=self.seen)


@dataclass(frozen=True)
class Score:
    """The result of one task at one length and width."""

    info: TaskInfo
    length: Length
    width: Width
    result: Result
    n: int  # images scored
    images_per_s: float | None
    reranked: tuple[Reranked, ...] = ()  # results of the cascade; only for retrieval at the cascade's long length


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
            image_z = images.rows[length].to(device)
            reranked: list[Reranked] = []
            if pair and prepared.rerank and length == pair[1]:
                reranked = prepared.rerank(images.rows[pair[0]].to(device), image_z)
            result = prepared.measure(image_z, taught.rows[length].to(device) if taught else image_z[:0])
            speed = images.speeds[length]
            yield Score(prepared.info, length, images.width, result, len(images.records), speed, tuple(reranked))


@dataclass(frozen=True)
class EmbeddedSplit:
    """The embeddings of a split by length: unit rows [N, D] float32, one per record, and images/s."""

    records: list[Record]
    rows: dict[Length, Tensor]
    speeds: dict[Length, float | None]
    width: Width = None

    def narrow(self, width: Width) -> EmbeddedSplit:
        """Return the split with the first `width` columns of its rows, normalised again. None: with all columns."""
        return self if width is None else replace(self, rows={at: _prefix(z, width) for at, z in self.rows.items()}, width=width)


def prepare_tasks(
    encoding: Encoding, splits: Splits, widths: Sequence[Width] = (None,)
) -> Iterator[tuple[Prepared, EmbeddedSplit, EmbeddedSplit | None]]:
    """Embed a data set in one pass, then yield each task at each width as (task, images, training split).

    The last two are embeddings; the training split is None if no task of the data set trains.
    """
    loaded = encoding.loaded
    with evaluating(loaded.model):
        taught = _embed(encoding, splits.training) if splits.training is not None else None
        images = _embed(encoding, splits.images)
        unread, training = len(splits.images.gather()[1]), taught.records if taught else ()
        texts = _asked_once(encoding.texts)
        for task, width in itertools.product(splits.config.tasks, widths):
            embed_task = _narrowed(texts, width)
            context = Context(splits.config, task, images.records, unread, embed_task, head_classes(loaded), training)
            yield TASKS[task.kind](context), images.narrow(width), taught.narrow(width) if taught else None


def _prefix(z: Tensor, width: Width) -> Tensor:
    """Return the first `width` columns of unit rows [N, D] as unit rows [N, width]; with None, return the rows unchanged."""
    return z if width is None else unit_rows(z[:, :width])


def _narrowed(embed: EmbedTexts, width: Width) -> EmbedTexts:
    return lambda texts: _prefix(embed(texts), width)


def _asked_once(embed: EmbedTexts) -> EmbedTexts:
    """Return `embed` with its last answer remembered, because a task asks for the same texts at every width."""
    last: tuple[Sequence[str], Tensor] | None = None

    def once(texts: Sequence[str]) -> Tensor:
        nonlocal last
        if last is None or list(last[0]) != list(texts):
            last = texts, embed(texts)
        return last[1]

    return once


def _embed(encoding: Encoding, images: ImageBlock) -> EmbeddedSplit:
    sweep = partial(encoding.images, images)
    lengths, store = encoding.lengths, encoding.store
    rows, speeds = sweep(lengths) if store is None else _kept_or_made(images, lengths, sweep, store)
    return EmbeddedSplit(images.gather()[0], rows, speeds)


def _kept_or_made(
    images: ImageBlock, lengths: Sequence[Length], sweep: Callable[[Sequence[Length]], Embedded], store: EmbeddingStore
) -> Embedded:
    """Return the store's embeddings, and encode the lengths that it lacks.

    If the pass for the missing lengths could read other samples than the kept embeddings have, all lengths are encoded again.
    """
    kept = store.read_images(images, lengths)
    missing = [length for length in lengths if length not in kept.rows]
    if not missing:
        return kept.rows, kept.speeds
    rows, speeds = sweep(missing)
    if not store.fits(images, kept):
        kept, (rows, speeds) = Kept(), sweep(lengths)
    store.write_images(images, rows, speeds)
    return kept.rows | rows, kept.speeds | speeds
