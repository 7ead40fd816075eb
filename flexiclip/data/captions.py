"""The captions of the training shards without their images: what a tokenizer learns from, and a locked text tower encodes."""

from __future__ import annotations

from collections.abc import Iterator

from flexiclip.config import DataConfig
from flexiclip.data.dataset import open_sources
from flexiclip.data.fields import BadSample
from flexiclip.data.sequential import stream_captions


def iter_captions(config: DataConfig) -> Iterator[str]:
    """Every readable caption of the training shards, once, in the shards' order: the corpus of a tokenizer."""
    if config.sequential:
        yield from stream_captions(config)
        return
    for store in open_sources(config, seed=0).stores:
        for number in range(len(store)):
            try:
                yield from store.captions(*store.locate(number))
            except BadSample:
                continue  # training names it, and so does `flexiclip data check`
