"""Samples by number: a store reads one sample's members in one range read, decodes the image, picks out captions and label."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from flexiclip.data.fields import BadSample, parse_json, read_captions
from flexiclip.data.images import ImageError, decode_image
from flexiclip.data.index import ShardIndex, index_shards, require_whole
from flexiclip.data.labels import Labels
from flexiclip.data.members import ChangedError, read_members
from flexiclip.data.reading import DEFAULT, Retries
from flexiclip.data.shards import shard_name
from flexiclip.data.stages import Note, silent


@dataclass(frozen=True)
class Sample:
    """An image with its captions and classes. shard: path or URL; json: the member of that name, where it was read."""

    shard: str
    key: str
    image: Image.Image  # RGB, upright
    captions: tuple[str, ...]  # non-empty, stripped
    json: bytes | None = None
    labels: tuple[int, ...] = ()  # numbers of its classes

    @property
    def name(self) -> str:
        """`SHARD/KEY` with the shard's file name alone."""
        return f"{shard_name(self.shard)}/{self.key}"

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        """The mapping in the member `json`, {} without one. Raises BadSample where it cannot be parsed."""
        found = None if self.json is None else parse_json(self.shard, self.key, self.json)
        return found if isinstance(found, dict) else {}


class SampleStore:
    """The samples of a list of shards, in the shards' order.

    indices: of the shards, from index.py. image_keys: extensions tried in turn for the image. captions: see fields.py; () reads
    none and asks for none. labels: None reads none. besides: further members that are read with them. retries: of each read.
    Picklable and safe to use from forked workers.
    """

    def __init__(
        self,
        indices: Sequence[ShardIndex],
        image_keys: Sequence[str],
        captions: Sequence[str],
        retries: Retries = DEFAULT,
        labels: Labels | None = None,
        besides: Sequence[str] = (),
    ) -> None:
        self.indices = tuple(indices)
        self.urls = tuple(index.url for index in self.indices)
        self.image_keys = tuple(key.lower() for key in image_keys)
        self.caption_specs, self.labels, self.besides = tuple(captions), labels, tuple(besides)
        self.retries = retries
        self.counts = np.array([len(index) for index in self.indices], dtype=np.int64)  # samples of each shard
        self._ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> Sample:
        """Sample `number` of 0..len-1, shard after shard. Raises BadSample, IndexError."""
        return self.read(*self.locate(number))

    def locate(self, number: int) -> tuple[int, int]:
        """(shard, sample in the shard) of a flat number; the inverse of `number`."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - int(self._ends[shard] - self.counts[shard])

    def number(self, shard: int, sample: int) -> int:
        """The flat number of a shard's sample."""
        return int(self._ends[shard] - self.counts[shard]) + sample

    def key(self, shard: int, sample: int) -> str:
        """The sample's key in its shard."""
        return self.indices[shard].key(sample)

    def read(self, shard: int, sample: int, min_side: int | None = None, note: Note = silent) -> Sample:
        """Read and decode one sample. min_side: see decode_image; note: is told what is being done. Raises BadSample."""
        wanted = {*self.image_keys, *_caption_members(self.caption_specs), *self.besides}
        wanted |= {self.labels.member} if self.labels else set()
        url, key = self.urls[shard], self.key(shard, sample)
        note("reading", url, key)
        members = self._read(shard, sample, wanted)
        note("decoding", url, key)
        return build_sample(url, key, members, self.image_keys, self.caption_specs, min_side, self.labels)

    def captions(self, shard: int, sample: int) -> tuple[str, ...]:
        """The captions alone, without touching the image. Raises BadSample."""
        data = self._read(shard, sample, set(_caption_members(self.caption_specs)))
        return read_captions(self.urls[shard], self.key(shard, sample), data, self.caption_specs)

    def member(self, shard: int, sample: int, extension: str) -> bytes | None:
        """Any other member, such as `cls`; None where the sample has none. Raises BadSample."""
        return self._read(shard, sample, {extension}).get(extension)

    def _read(self, shard: int, sample: int, wanted: set[str]) -> dict[str, bytes]:
        places = {name: place for name, place in self.indices[shard].members(sample).items() if name in wanted}
        try:
            return read_members(self.urls[shard], places, self.retries)
        except ChangedError as error:
            raise BadSample(self.urls[shard], self.key(shard, sample), str(error)) from None
        except OSError as error:
            raise BadSample(self.urls[shard], self.key(shard, sample), f"cannot be read: {error}") from None


def open_samples(
    urls: Sequence[str], image_keys: Sequence[str], captions: Sequence[str], index_cache: str | None = None
) -> SampleStore:
    """The samples of expanded shards, all of them whole, with their `json`; index_cache: see index.py.

    Raises UserError for a damaged shard.
    """
    return SampleStore(require_whole(index_shards(urls, index_cache)), image_keys, captions, besides=("json",))


def build_sample(
    shard: str,
    key: str,
    members: Mapping[str, bytes],
    image_keys: Sequence[str],
    captions: Sequence[str],
    min_side: int | None,
    labels: Labels | None = None,
) -> Sample:
    """A Sample from its members' bytes. Raises BadSample."""
    data = next((members[name] for name in image_keys if name in members), None)
    if data is None:
        raise BadSample(shard, key, f"no image: none of {', '.join(image_keys)}")
    texts = read_captions(shard, key, members, captions)
    numbers = labels.read(shard, key, members) if labels else ()
    try:
        image = decode_image(data, min_side)
    except ImageError as error:
        raise BadSample(shard, key, f"image cannot be decoded: {error}") from None
    return Sample(shard, key, image, texts, members.get("json"), numbers)


def _caption_members(specs: Sequence[str]) -> list[str]:
    return [spec.partition(":")[0] for spec in specs]
