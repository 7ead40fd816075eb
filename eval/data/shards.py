"""Where samples come from. A source hands out samples by number: shards.py, files.py (a folder a class, a table of captions).

All kinds give the same Item, so that tasks and embeddings never know which one they serve; opening.py opens one.

Samples in webdataset shards, read by offset: shards that a suite names, and those of CLIP_benchmark's layout.

Keys and members only choose bytes inside a shard; they never become paths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from flexiclip_eval.suites.dataset import DatasetConfig
from flexiclip_eval.suites.layout import shard_places
from PIL.Image import Image

from flexiclip.data.index import ShardIndex
from flexiclip.data.reading import shard_stamp
from flexiclip.data.remote import expand_shards, shard_name
from flexiclip.data.samples import SampleStore, open_samples
from flexiclip.errors import UserError
from flexiclip.tensor_files import read_npy

Label = str | int | tuple[str | int, ...] | None
"""A class by name or number, several of them for an image of many classes, or none."""


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


_DIGITS = 18  # of a label that is a number; int() refuses some thousand of them


class ShardSource:
    """See Source. Raises UserError for a shard that cannot be read, or a sample without any image."""

    def __init__(self, config: DatasetConfig) -> None:
        captions = config.captions if config.has_captions else ()
        urls = expand_shards(config.shards) if config.shards is not None else shard_places(str(config.root), config.split)
        self.store: SampleStore = open_samples(urls, config.image_keys, captions, index_cache=config.index_cache)
        for index in self.store.indices:
            require_images(index, self.store.image_keys)

    def __len__(self) -> int:
        return len(self.store)

    def item(self, number: int, label_keys: Sequence[str]) -> Item:
        """See Source."""
        sample = self.store[number]
        labels = {key: self._label(number, sample.meta if key.startswith("json:") else {}, key) for key in label_keys}
        return Item(sample.name, sample.image, sample.captions, labels)

    def fingerprint(self) -> str:
        """Of the shards' names, sizes and times of change (or entity tags) and indices: every member's name, place and header."""
        digest = hashlib.sha256()
        for index in self.store.indices:
            about = f"\n{shard_name(index.url)} {shard_stamp(index.url)} {index.extensions}"
            digest.update(about.encode("utf-8", "surrogateescape"))
            for array in (index.key_bytes, index.key_first, index.first, index.extension, index.offset, index.size, index.header):
                digest.update(array.tobytes())
        return digest.hexdigest()

    def _label(self, number: int, meta: dict[str, Any], key: str) -> Label:
        """The label under `json:FIELD` (`json:a.b` descends), or in a member. None when there is none."""
        if not key.startswith("json:"):
            return member_label(key, self.store.member(*self.store.locate(number), key))
        value: Any = meta
        for part in key.removeprefix("json:").split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return json_label(value)


def require_images(index: ShardIndex, image_keys: Sequence[str]) -> None:
    """Raise UserError for a sample that has captions or labels and no image: that is a shard written wrongly, not a bad image."""
    if len(index) == 0:
        return
    wanted = [number for number, name in enumerate(index.extensions) if name in image_keys]
    has_image = np.logical_or.reduceat(np.isin(index.extension, wanted), index.first[:-1].astype(np.int64))
    if not has_image.all():
        key = index.key(int(np.argmin(has_image)))
        raise UserError(
            f"shard {index.url}: the sample {key} has no image, none of {', '.join(image_keys)}: remove it or name image_keys"
        )


def json_label(value: Any) -> Label:
    """A name, a number, or a list of them; None for anything else. As in training, true is the name `True` and 1.5 `1.5`."""
    if isinstance(value, list):
        several = [json_label(each) for each in value]
        return tuple(each for each in several if isinstance(each, (str, int))) if None not in several else None
    if isinstance(value, (bool, float)):
        return str(value)
    return value if isinstance(value, (str, int)) else None


def member_label(key: str, raw: bytes | None) -> Label:
    """A name, or a number, as text; of a member `npy` the classes where its vector is not 0. None when there is none."""
    if raw is None or key.rpartition(".")[2] == "npy":
        return None if raw is None else _classes_of_vector(raw)
    return text_label(raw.decode("utf-8-sig", "replace"))


def text_label(text: str) -> Label:
    """A number where the text is one, else the text, None for nothing."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else text or None


def _classes_of_vector(raw: bytes) -> Label:
    try:
        vector = read_npy(raw)
    except ValueError:
        return None
    return tuple(np.flatnonzero(vector).tolist()) if vector.ndim == 1 else None
