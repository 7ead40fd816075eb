"""`flexiclip data check SHARDS...` and `flexiclip data index SHARDS...`: what is broken, and what there is.

check reads and decodes every sample exactly as training does, so what it passes, training can use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from flexiclip.data.index import index_shard, index_shards, require_whole
from flexiclip.data.progress import progress
from flexiclip.data.samples import BadSample, SampleStore
from flexiclip.errors import UserError

_CHUNK = 256  # samples handed to the threads at a time, so that a shard's images never wait in memory together


@dataclass(frozen=True)
class ShardRow:
    """A line of `data index`: samples in the shard and bytes of their members."""

    shard: str
    samples: int
    bytes: int


def check_shards(
    urls: Sequence[str], image_keys: Sequence[str], captions: Sequence[str], index_cache: str | None = None, workers: int = 4
) -> list[BadSample]:
    """Every sample that training would replace, and every shard that it would not use whole (its `key` is empty), in their order.

    urls: expanded shards. workers: threads; Pillow decodes outside Python's lock.
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
    for start in progress(range(0, len(store), _CHUNK), -(-len(store) // _CHUNK), f"checking {store.urls[0]}"):
        numbers = range(start, min(start + _CHUNK, len(store)))
        yield from (found for found in pool.map(lambda number: _check_sample(store, number), numbers) if found)


def _check_sample(store: SampleStore, number: int) -> BadSample | None:
    try:
        store[number]
    except BadSample as error:
        return error
    return None


def describe_shards(urls: Sequence[str], index_cache: str | None = None) -> list[ShardRow]:
    """Index the shards (and cache the index) and count them. Raises UserError that names a damaged shard."""
    return [ShardRow(index.url, len(index), index.content_bytes) for index in require_whole(index_shards(urls, index_cache))]
