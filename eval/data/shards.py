"""Defines a source of samples (Source, Item), and reads samples from webdataset shards.

A source returns samples by number. ShardSource reads the shards that a suite names and those of CLIP_benchmark's layout; files.py
has the sources for folders and tables, and `open_source` of images.py opens the right one. All of them return the same Item, so
that tasks and embeddings do not depend on the kind of source.

Samples are read from a shard by offset. Keys and members only select bytes inside a shard; they are never used as paths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from flexiclip_eval.suites.dataset import DatasetConfig
from flexiclip_eval.suites.layout import shard_places
from PIL.Image import Image

from flexiclip.data.index import ShardIndex
from flexiclip.data.reading import shard_stamp
from flexiclip.data.remote import expand_shards, shard_name
from flexiclip.data.samples import Sample, nested, open_samples
from flexiclip.errors import UserError
from flexiclip.tensor_files import read_npy

Label = str | int | tuple[str | int, ...] | None
"""The label of an image: a class by its name or number, a tuple of several classes, or None."""


@dataclass(frozen=True)
class Item:
    """One decoded sample."""

    name: str  # its name in messages
    image: Image  # RGB, upright
    captions: tuple[str, ...]
    labels: dict[str, Label]  # by the `label` keys of the tasks; None if the sample has no such label


class Source(Protocol):
    """A source of samples by number, 0..len-1, in an order that never changes. Its methods are called from several threads."""

    def __len__(self) -> int: ...

    def item(self, number: int, label_keys: Sequence[str]) -> Item:
        """Read and decode one sample, with its labels by `label_keys`. Raises flexiclip.data.samples.BadSample."""
        ...

    def fingerprint(self) -> str:
        """Return a hash that changes with the samples, such as one of names and sizes. Kept embeddings are found by it.

        It does not depend on the folder or server that holds the samples.
        """
        ...


_DIGITS = 18  # a label with more digits is not read as a number; int() raises an error for several thousand digits


class ShardSource:
    """A Source of the samples in webdataset shards. Raises UserError if a shard cannot be read or a sample has no image."""

    def __init__(self, config: DatasetConfig) -> None:
        captions = config.captions if config.has_captions else ()
        urls = expand_shards(config.shards) if config.shards is not None else shard_places(str(config.root), config.split)
        self.store = open_samples(urls, config.image_keys, captions, index_cache=config.index_cache)
        for index in self.store.indices:
            require_images(index, self.store.image_keys)

    def __len__(self) -> int:
        return len(self.store)

    def item(self, number: int, label_keys: Sequence[str]) -> Item:
        """Read and decode one sample, with its labels by `label_keys`. Raises BadSample."""
        sample = self.store[number]
        labels = {key: self._label(number, sample, key) for key in label_keys}
        return Item(sample.name, sample.image, sample.captions, labels)

    def fingerprint(self) -> str:
        """Return a hash of the shards and of their indices.

        It covers the names, sizes and modification times (or entity tags) of the shards, and the name, place and header of every
        member.
        """
        digest = hashlib.sha256()
        for index in self.store.indices:
            about = f"\n{shard_name(index.url)} {shard_stamp(index.url)} {index.extensions}"
            digest.update(about.encode("utf-8", "surrogateescape"))
            for array in (index.key_bytes, index.key_first, index.first, index.extension, index.offset, index.size, index.header):
                digest.update(array.tobytes())
        return digest.hexdigest()

    def _label(self, number: int, sample: Sample, key: str) -> Label:
        """Return the label in a JSON field (`json:FIELD`; `json:a.b` is field b of a) or in a member; None if there is none."""
        if key.startswith("json:"):
            return json_label(nested(sample.meta, key.removeprefix("json:")))
        return member_label(key, self.store.member(*self.store.locate(number), key))


def require_images(index: ShardIndex, image_keys: Sequence[str]) -> None:
    """Raise UserError if a sample has no image member, since the shard was then written wrongly; a bad image is another case."""
    if len(index) == 0:
        return
    wanted = [number for number, name in enumerate(index.extensions) if name in image_keys]
    has_image = np.logical_or.reduceat(np.isin(index.extension, wanted), index.first[:-1].astype(np.int64))
    if not has_image.all():
        key = index.key(int(np.argmin(has_image)))
        raise UserError(
            f"shard {index.url}: the sample {key} has no image, none of {', '.join(image_keys)}: remove it or name image_keys"
        )


def json_label(value: object) -> Label:
    """Return a JSON value as a label: a name, a number, or a tuple of them; None for anything else.

    As in training, true is the name `True` and 1.5 is the name `1.5`.
    """
    if isinstance(value, list):
        several = [json_label(each) for each in value]
        return tuple(each for each in several if isinstance(each, (str, int))) if None not in several else None
    if isinstance(value, (bool, float)):
        return str(value)
    return value if isinstance(value, (str, int)) else None


def member_label(key: str, raw: bytes | None) -> Label:
    """Return the content of a member as a label: a number or a name from its text; None if there is none.

    A member `npy` holds a vector; its label is the tuple of the classes where the vector is not 0.
    """
    if raw is None:
        return None
    if key.rpartition(".")[2] != "npy":
        return text_label(raw.decode("utf-8-sig", "replace"))
    try:
        vector = read_npy(raw)
    except ValueError:
        return None
    return tuple(np.flatnonzero(vector).tolist()) if vector.ndim == 1 else None


def text_label(text: str) -> Label:
    """Return a text as a label: a number if it consists of at most 18 digits, else the text itself; None for an empty text."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else text or None
