"""Finds broken shards and samples (`flexiclip data check`) and counts what shards hold (`flexiclip data index`).

`check` reads and decodes every sample exactly as training does, so training can use whatever passes the check.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from flexiclip.data.index import index_shard, index_shards, require_whole
from flexiclip.data.samples import BadSample, SampleStore
from flexiclip.errors import UserError
from flexiclip.progress import progress

_CHUNK = 256  # samples handed to the threads at a time, so that the images of a whole shard are never in memory together


@dataclass(frozen=True)
class ShardRow:
    """One line of `flexiclip data index`: the number of samples in a shard and the bytes of their members."""

    shard: str
    samples: int
    bytes: int


def check_shards(
    urls: Sequence[str], image_keys: Sequence[str], captions: Sequence[str], index_cache: str | None = None, workers: int = 4
) -> list[BadSample]:
    """Return every sample that training would replace and every shard that it would not use whole, in order.

    A bad shard has an empty `key`. `urls`: expanded shards. `workers`: the number of threads that decode; Pillow
    decodes without Python's global lock.
    """
    bad: list[BadSample] = []
    with ThreadPoolExecutor(workers) as pool:
        for url in progress(urls, len(urls), "checking shards"):
            try:
                index = index_shard(url, index_cache)
            except UserError as error:
                bad.append(BadSample(url, "", str(error)))
                continue
            if index.damage:
                bad.append(BadSample(url, "", index.damage))
            if len(index):
                bad += _check_store(SampleStore([index], image_keys, captions), pool)
    return bad


def _check_store(store: SampleStore, pool: ThreadPoolExecutor) -> Iterator[BadSample]:
    """Yield the bad samples of a store."""
    for start in progress(range(0, len(store), _CHUNK), -(-len(store) // _CHUNK), f"checking {store.urls[0]}"):
        numbers = range(start, min(start + _CHUNK, len(store)))
        yield from (found for found in pool.map(lambda number: _check_sample(store, number), numbers) if found)


def _check_sample(store: SampleStore, number: int) -> BadSample | None:
    """Return the reason why a sample cannot be used, or None if it can."""
    try:
        store[number]
    except BadSample as error:
        return error
    return None


def describe_shards(urls: Sequence[str], index_cache: str | None = None) -> list[ShardRow]:
    """Index the shards, cache the indices, and count samples and bytes. Raises UserError for the first damaged shard."""
    return [ShardRow(index.url, len(index), index.content_bytes) for index in require_whole(index_shards(urls, index_cache))]
