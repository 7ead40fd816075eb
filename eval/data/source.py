"""Where samples come from. A source hands out samples by number; shards are one kind of it.

All kinds give the same Item, so that tasks and embeddings never know which one they serve.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL.Image import Image

from flexiclip.data.samples import SampleStore, open_samples
from flexiclip.data.shards import expand_shards, shard_name
from flexiclip.errors import UserError

from ..suites.dataset import DatasetConfig

Label = str | int | None

_DIGITS = 18  # of a label that is a number; int() refuses some thousand of them


@dataclass(frozen=True)
class Item:
    """One sample. image: RGB, upright; labels: by the `label` key of the tasks, None where the sample has none."""

    name: str  # of the sample, for messages
    image: Image
    captions: tuple[str, ...]
    labels: dict[str, Label]


class Source(Protocol):
    """Samples by number, 0..len-1, in an order that never changes. Called from threads."""

    def __len__(self) -> int: ...

    def item(self, number: int, label_keys: Sequence[str]) -> Item:
        """Read and decode one sample. Raises flexiclip.data.samples.BadSample."""
        ...

    def fingerprint(self) -> str:
        """A hash that changes with the samples, for embeddings that are kept: names and sizes, not where they lie."""
        ...


def open_source(config: DatasetConfig) -> Source:
    """The samples that a data set names. Raises UserError for none at all and for what cannot be read as a whole."""
    source = ShardSource(config)
    if len(source) == 0:
        raise UserError(f"data set {config.name}: the shards {config.shards} hold no sample")
    return source


class ShardSource:
    """webdataset shards, read by offset."""

    def __init__(self, config: DatasetConfig) -> None:
        captions = config.captions if config.has_retrieval else ()
        self.store: SampleStore = open_samples(
            expand_shards(config.shards), config.image_keys, captions, index_cache=config.index_cache
        )

    def __len__(self) -> int:
        return len(self.store)

    def item(self, number: int, label_keys: Sequence[str]) -> Item:
        """See Source."""
        sample = self.store[number]
        labels = {key: self._label(number, sample.meta, key) for key in label_keys}
        return Item(sample.name, sample.image, sample.captions, labels)

    def fingerprint(self) -> str:
        """Of the shards' names and indices: every member's name, place, size and header."""
        digest = hashlib.sha256()
        for index in self.store.indices:
            digest.update(f"\n{shard_name(index.url)} {index.extensions}".encode())
            for array in (index.key_bytes, index.key_first, index.first, index.extension, index.offset, index.size, index.header):
                digest.update(array.tobytes())
        return digest.hexdigest()

    def _label(self, number: int, meta: dict[str, Any], key: str) -> Label:
        """The label under `json:FIELD` (`json:a.b` descends), or in a member: a name, or a number. None when there is none."""
        if not key.startswith("json:"):
            raw = self.store.member(*self.store.locate(number), key)
            text = "" if raw is None else raw.decode("utf-8", "replace").strip()
            return int(text) if text.isdecimal() and len(text) <= _DIGITS else text or None
        value: Any = meta
        for part in key.removeprefix("json:").split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value if isinstance(value, (str, int)) and not isinstance(value, bool) else None
