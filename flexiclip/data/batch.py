"""What a step reads: items, one a sample, and the batch that a rank makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from flexiclip.data.samples import BadSample

Tokenize = Callable[[list[str]], torch.Tensor]


@dataclass(frozen=True)
class Item:
    """One training sample. pixels: uint8 [3, H, W], in any order in memory; bad: the unreadable samples met on the way to it."""

    pixels: torch.Tensor
    caption: str
    name: str
    bad: tuple[BadSample, ...] = ()


@dataclass(frozen=True)
class Batch:
    """A rank's part of a step: b samples.

    images: uint8 [b, 3, H, W]; tokens: int64 [b, L]; caption_ids: int64 [b], equal exactly where the captions are;
    samples: `SHARD/KEY` of each; bad: {shard, key, reason} of every unreadable sample that was replaced.
    """

    step: int
    images: torch.Tensor
    tokens: torch.Tensor
    caption_ids: torch.Tensor
    captions: list[str]
    samples: list[str]
    bad: list[dict[str, str]]

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        pinned = {name: getattr(self, name).pin_memory() for name in ("images", "tokens", "caption_ids")}
        return replace(self, **pinned)


def caption_id(caption: str) -> int:
    """A 63-bit number that depends on the text alone, on every rank and in every run."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Collate:
    """Items to a Batch. trim: drop the columns of `pad_id` that every caption of the batch ends with."""

    tokenizer: Tokenize
    trim: bool
    pad_id: int

    def __call__(self, step: int, items: Sequence[Item]) -> Batch:
        """Tokenise and stack."""
        captions = [item.caption for item in items]
        tokens = self.tokenizer(captions).long()
        if self.trim:
            used = (tokens != self.pad_id).any(dim=0).nonzero()
            tokens = tokens[:, : int(used[-1]) + 1 if len(used) else 1].contiguous()
        images = torch.empty((len(items), *items[0].pixels.shape), dtype=torch.uint8)
        for image, item in zip(images, items, strict=True):
            image.copy_(item.pixels)  # the one copy, which orders the memory too
        return Batch(
            step=step,
            images=images,
            tokens=tokens,
            caption_ids=torch.tensor([caption_id(caption) for caption in captions], dtype=torch.int64),
            captions=captions,
            samples=[item.name for item in items],
            bad=[error.as_dict() for item in items for error in item.bad],
        )
