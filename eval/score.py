"""Every task of a data set at every length, from one pass over its images: what both entries of run.py go through."""

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
from flexiclip_eval.progress import Watch, silent
from flexiclip_eval.rows import TaskInfo
from flexiclip_eval.tasks.base import Context, Prepared, Result
from flexiclip_eval.tasks.registry import TASKS
from flexiclip_eval.tradeoffs import Reranked
from torch import Tensor

Embedded = tuple[dict[Length, Tensor], dict[Length, float | None]]  # unit rows [N, D] and images/s by length

EmbedTexts = Callable[[Sequence[str]], Tensor]  # texts -> unit rows [T, D]


@dataclass(frozen=True)
class Encoding:
    """What turns images and texts into embeddings, at which lengths, and where these are kept."""

    loaded: EvalModel
    lengths: Sequence[Length]
    batch_size: int
    device: torch.device
    seen: Watch = silent
    store: EmbeddingStore | None = None

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit rows [T, D]."""
        return embed_texts(self.loaded, texts, batch_size=self.batch_size, device=self.device, store=self.store)

    def images(self, images: ImageBlock, lengths: Sequence[Length]) -> Embedded:
        """Of one pass over the images, past the store."""
        return embed_images(self.loaded, images, lengths, batch_size=self.batch_size, device=self.device, watch=self.seen)


@dataclass(frozen=True)
class Score:
    """A task at one length."""

    info: TaskInfo
    length: Length
    width: Width
    result: Result
    n: int
    images_per_s: float | None
    reranked: tuple[Reranked, ...] = ()  # retrieval at the long length of a cascade: what it finds


def score_tasks(
    encoding: Encoding, splits: Splits, pair: tuple[int, int] | None = None, widths: Sequence[Width] = (None,)
) -> Iterator[Score]:
    """The scores of every task, width and length of a data set, from one pass over its images, or none where the store has them.

    pair: the lengths of a cascade, if there is one. widths: of the embeddings that are compared.
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
    """A split at every length: unit rows [N, D] of its records, and images/s."""

    records: list[Record]
    rows: dict[Length, Tensor]
    speeds: dict[Length, float | None]
    width: Width = None

    def narrow(self, width: Width) -> EmbeddedSplit:
        """The same with the first `width` columns of its rows."""
        return self if width is None else replace(self, rows={at: _prefix(z, width) for at, z in self.rows.items()}, width=width)


def prepare_tasks(
    encoding: Encoding, splits: Splits, widths: Sequence[Width] = (None,)
) -> Iterator[tuple[Prepared, EmbeddedSplit, EmbeddedSplit | None]]:
    """(a task, the images' embeddings, the training split's if a task trains) for every task and width, after one pass."""
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
    """The first `width` columns of unit rows, as unit rows; None: all of them."""
    return z if width is None else unit_rows(z[:, :width])


def _narrowed(embed: EmbedTexts, width: Width) -> EmbedTexts:
    return lambda texts: _prefix(embed(texts), width)


def _asked_once(embed: EmbedTexts) -> EmbedTexts:
    """`embed`, which remembers what it was asked for last: a task asks for the same texts at every width."""
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
