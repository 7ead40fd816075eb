"""Reads every sample of shards as training does: which are bad, how large the images are, and how long the captions.

flexiclip data check 'data/train-*.tar' [--tokenizer clip]
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flexiclip.data.index import ShardIndex, index_shard
from flexiclip.data.samples import BadSample, SampleStore
from flexiclip.errors import UserError, counted
from flexiclip.files import size_text
from flexiclip.progress import Watch, progress, silent

if TYPE_CHECKING:
    from flexiclip.data.tokenizers import Tokenizer

_CHECKERS = 4  # threads that decode samples; Pillow decodes without Python's global lock
_CHUNK = 256  # samples handed to the threads at a time, so that the images of a whole shard are never in memory together
LONGEST = 1024  # tokens; a longer caption counts as this long


class _Seen(NamedTuple):
    width: int
    height: int
    captions: tuple[str, ...]


@dataclass
class Totals:
    """What a check has found. `bad`: what training would replace, in order; the key of a bad shard is empty."""

    bad: list[BadSample] = field(default_factory=list)
    shards: int = 0
    samples: int = 0  # with the bad ones
    content_bytes: int = 0  # of all members
    widths: array[int] = field(default_factory=lambda: array("I"))  # of each good image, in pixels, as it is shown
    heights: array[int] = field(default_factory=lambda: array("I"))
    captions: array[int] = field(default_factory=lambda: array("I"))  # captions of each good sample
    words: array[int] = field(default_factory=lambda: array("I"))  # of each caption
    tokens: array[int] = field(default_factory=lambda: array("I"))  # of each caption, with those that the tokenizer adds

    def lines(self) -> list[str]:
        """Return the totals as lines of text: the counts, and a table of sizes and lengths."""
        head = f"{counted(self.samples, 'sample')} in {counted(self.shards, 'shard')}, {size_text(self.content_bytes)}"
        rows = {
            "image width": self.widths,
            "image height": self.heights,
            "captions per sample": self.captions,
            "words per caption": self.words,
            "tokens per caption": self.tokens,
        }
        table = [f"{name:<20}{''.join(f'{value:>9,}' for value in spread(found))}" for name, found in rows.items() if found]
        names = "".join(f"{name:>9}" for name in ("min", "median", "99 %", "max"))
        bad = f"{counted(len(self.bad), 'bad sample')}" if self.bad else "every sample is good"
        return [head, *([f"{'':<20}{names}", *table] if table else []), bad]


def spread(values: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the smallest value, the median, the value that 99 % do not exceed, and the largest. Each is one of the values."""
    ordered = np.sort(np.asarray(values))
    at = [0, (len(ordered) - 1) // 2, -(-99 * len(ordered) // 100) - 1, len(ordered) - 1]
    low, middle, high, top = (int(ordered[index]) for index in at)
    return low, middle, high, top


def check_shards(
    urls: Sequence[str],
    image_keys: Sequence[str],
    captions: Sequence[str],
    tokenizer: Tokenizer | None = None,
    watch: Watch[list[tuple[SampleStore, int]]] = silent,
) -> Totals:
    """Read and decode every sample exactly as in training, so training can use whatever passes.

    `urls`: expanded shards. `tokenizer`: one of `counting_tokenizer`. `watch`: shows the progress over the samples.
    """
    found = [_indexed(url) for url in progress(urls, len(urls), "indexing shards")]
    indices = [index for index, _ in found if index is not None]
    totals = Totals(shards=len(urls), samples=sum(map(len, indices)), content_bytes=sum(i.content_bytes for i in indices))

    def parts() -> Iterator[list[tuple[SampleStore, int]]]:
        for index, bad in found:
            totals.bad += [bad] if bad is not None else []
            if index is not None and len(index):
                store = SampleStore([index], image_keys, captions)
                for start in range(0, len(store), _CHUNK):
                    yield [(store, number) for number in range(start, min(start + _CHUNK, len(store)))]

    with ThreadPoolExecutor(_CHECKERS) as pool:
        for part in watch(parts(), totals.samples):
            _add(totals, list(pool.map(_look, part)), tokenizer)
    return totals


def _indexed(url: str) -> tuple[ShardIndex | None, BadSample | None]:
    """Return the index of a shard, and what is wrong with the shard."""
    try:
        index = index_shard(url)
    except UserError as error:
        return None, BadSample(url, "", str(error))
    return index, BadSample(url, "", index.damage) if index.damage else None


def _look(at: tuple[SampleStore, int]) -> _Seen | BadSample:
    """Decode one sample of a store."""
    store, number = at
    try:
        sample = store[number]
    except BadSample as error:
        return error
    return _Seen(sample.image.width, sample.image.height, sample.captions)


def _add(totals: Totals, samples: Sequence[_Seen | BadSample], tokenizer: Tokenizer | None) -> None:
    good = [sample for sample in samples if isinstance(sample, _Seen)]
    totals.bad += [sample for sample in samples if isinstance(sample, BadSample)]
    texts = [text for sample in good for text in sample.captions]
    totals.widths.extend(sample.width for sample in good)
    totals.heights.extend(sample.height for sample in good)
    if texts:
        totals.captions.extend(len(sample.captions) for sample in good)
        totals.words.extend(len(text.split()) for text in texts)
        if tokenizer is not None:
            totals.tokens.extend(token_counts(tokenizer, texts))


def token_counts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text, at most LONGEST: those before the padding, which may be the end token itself."""
    used = (tokenizer(texts) != tokenizer.pad_id).numpy()
    counts = used.shape[1] - used[:, ::-1].argmax(axis=1)
    counts[~used.any(axis=1)] = 0
    return [min(int(count) + (tokenizer.pad_id == tokenizer.eos_id), LONGEST) for count in counts]


def counting_tokenizer(name: str) -> Tokenizer:
    """Return a tokenizer that cuts texts only at LONGEST tokens. Raises UserError.

    `name`: `clip`, a sentencepiece file that ends in .model, or a folder or hub name of a Hugging Face tokenizer.
    """
    from flexiclip.config import TokenizerConfig
    from flexiclip.data.tokenizers import build_tokenizer

    if name == "clip":
        config = TokenizerConfig(kind="clip")
    elif Path(name).suffix == ".model":
        config = TokenizerConfig(kind="sentencepiece", path=name)
    else:
        config = TokenizerConfig(kind="huggingface", path=name)
    return build_tokenizer(replace(config, context_length=LONGEST))
