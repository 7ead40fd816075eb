"""Mixup (arXiv 1710.09412): each image becomes a mixture with the one before it in the global batch, and its classes likewise.

How much of itself an image keeps is drawn once a step from Beta(p, p), and is the larger part, as in big_vision's get_mixup. It
follows from (seed, step), and the partner from the position: so the mixture does not depend on the number of ranks. Mixed pixels
are rounded to whole grey levels, as float32 they would take four times the bytes; a teacher sees what its student sees.

What a step reads: items, one a sample, and the batch that a rank makes of them.

Handing batches from data workers to the trainer through shared memory, and saying so in one line when there is too little.

Left to itself, torch moves a batch there in a thread of the worker. Where /dev/shm is full (docker gives a container 64 MB), that
thread prints a traceback and drops the batch, and the trainer waits for it for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.data import get_worker_info

from flexiclip.data.samples import BadSample
from flexiclip.draws import Draw, stream
from flexiclip.errors import RunError


@dataclass(frozen=True)
class Mixup:
    """p: of Beta(p, p), above 0; small values leave most steps nearly as they were."""

    p: float
    seed: int

    def kept(self, step: int) -> float:
        """What an image keeps of itself in a step, 0.5 to 1."""
        drawn = stream(self.seed, Draw.MIXUP, step).beta(self.p)
        return max(drawn, 1 - drawn)


def mix(images: torch.Tensor, before: torch.Tensor, kept: float) -> None:
    """In place: kept * image + (1 - kept) * the one before it, rounded. uint8 [b, 3, H, W]; before [3, H, W]: the first's."""
    for i in reversed(range(len(images))):  # the last first: the one before is then still what it was
        images[i] = (kept * images[i].float()).add_((images[i - 1] if i else before).float(), alpha=1 - kept).round_()


Tokenize = Callable[[list[str]], torch.Tensor]
TENSORS = ("images", "tokens", "caption_ids", "labels", "shares")
"""The fields of a batch that go to the device."""


@dataclass(frozen=True)
class Item:
    """One training sample. pixels: uint8 [3, H, W], in any order in memory; bad: the unreadable samples met on the way to it.

    caption: "" where none are read. labels: numbers of its classes, () where none are read.
    """

    pixels: torch.Tensor
    caption: str
    name: str
    bad: tuple[BadSample, ...] = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Batch:
    """A rank's part of a step: b samples.

    images: uint8 [b, 3, H, W]; tokens: int64 [b, L], L = 0 where no captions are read; caption_ids: int64 [b], equal exactly
    where the captions are; labels: int64 [b, M], classes of each image, and shares: float32 [b, M], how much of each, 0 where an
    image has fewer than M; samples: `SHARD/KEY` of each; bad: {shard, key, reason} of every unreadable sample that was replaced.
    """

    step: int
    images: torch.Tensor
    tokens: torch.Tensor
    caption_ids: torch.Tensor
    captions: list[str]
    labels: torch.Tensor
    shares: torch.Tensor
    samples: list[str]
    bad: list[dict[str, str]]

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        pinned = {name: getattr(self, name).pin_memory() for name in TENSORS}
        return replace(self, **pinned)


def caption_id(caption: str) -> int:
    """A 63-bit number that depends on the text alone, on every rank and in every run."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Collate:
    """Items to a Batch. tokenizer: None where no captions are read. trim: drop the columns of `pad_id` that every caption of the
    batch ends with. mixup: see mixup.py.
    """

    tokenizer: Tokenize | None
    trim: bool = False
    pad_id: int = 0
    mixup: Mixup | None = None

    def __call__(self, step: int, items: Sequence[Item], before: Item | None = None) -> Batch:
        """Tokenise and stack; with mixup, mix each image with the one before it, the first with `before`."""
        captions = [item.caption for item in items]
        images = torch.empty((len(items), *items[0].pixels.shape), dtype=torch.uint8)
        for image, item in zip(images, items, strict=True):
            image.copy_(item.pixels)  # the one copy, which orders the memory too
        labels, shares = _labels(items)
        if self.mixup is not None:
            assert before is not None, "the loader reads one sample more for mixup"
            kept = self.mixup.kept(step)
            mix(images, before.pixels, kept)
            others, their_shares = _labels([before, *items[:-1]])
            labels, shares = torch.hstack([labels, others]), torch.hstack([kept * shares, (1 - kept) * their_shares])
        return Batch(
            step=step,
            images=images,
            tokens=self._tokens(captions),
            caption_ids=torch.tensor([caption_id(caption) for caption in captions], dtype=torch.int64),
            captions=captions,
            labels=labels,
            shares=shares,
            samples=[item.name for item in items],
            bad=[error.as_dict() for item in items for error in item.bad],
        )

    def _tokens(self, captions: list[str]) -> torch.Tensor:
        if self.tokenizer is None:
            return torch.empty(len(captions), 0, dtype=torch.int64)
        tokens = self.tokenizer(captions).long()
        if not self.trim:
            return tokens
        used = (tokens != self.pad_id).any(dim=0).nonzero()
        return tokens[:, : int(used[-1]) + 1 if len(used) else 1].contiguous()


def _labels(items: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor]:
    """(classes int64, shares float32) of the items, [b, M] for M the most that one of them has."""
    most = max(len(item.labels) for item in items)
    labels, shares = torch.zeros(len(items), most, dtype=torch.int64), torch.zeros(len(items), most)
    for row, item in enumerate(items):
        labels[row, : len(item.labels)] = torch.tensor(item.labels, dtype=torch.int64)
        shares[row, : len(item.labels)] = 1.0
    return labels, shares


_FOLDER = "/dev/shm"  # noqa: S108 (nothing is written there by its name)
_MB = 2**20
_LEAST = _MB  # bytes; the queues of the workers need some, and a batch of images hardly less


def require_room() -> None:
    """Raise RunError where there is not even room for the queues of the data workers."""
    free, total = _room()
    if total and free < _LEAST:
        raise _too_little("the data workers need more")


def shared(batch: Batch) -> Batch | RunError:
    """In a data worker the batch with its tensors in shared memory, or what to say when they do not fit. Elsewhere the batch."""
    if get_worker_info() is None:
        return batch
    try:
        for name in TENSORS:
            getattr(batch, name).share_memory_()
    except (RuntimeError, OSError) as error:
        size = sum(getattr(batch, name).nbytes for name in TENSORS)
        return _too_little(f"a batch of {size / _MB:.1f} MB does not fit: {error}")
    return batch


def _too_little(what: str) -> RunError:
    """The error that names shared memory and the remedies."""
    free, total = _room()
    return RunError(
        f"too little shared memory ({_FOLDER}: {free / _MB:.1f} of {total / _MB:.1f} MB are free), where data workers hand over "
        "their batches: give it more (docker run --shm-size=8g, or --ipc=host), lower data.workers or data.prefetch, or set "
        f"data.workers=0; {what}"
    )


def _room() -> tuple[int, int]:
    """Bytes that are free there, and in all; 0 in all where nothing says how many, or there is no limit."""
    with contextlib.suppress(OSError):
        found = os.statvfs(_FOLDER)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    return 0, 0
