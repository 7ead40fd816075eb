"""Texts and values out of a sample's members.

Captions are named by `data.captions`, each entry `MEMBER` or `MEMBER:SELECTOR`:

    txt              the member is one caption, line breaks included
    txt:lines        one caption a line, as CLIP_benchmark's retrieval shards have it
    json:caption     a field of a JSON member: a text or a list of texts; `json:a.b` descends

Captions are stripped, cut after 8,192 characters, and empty ones dropped. A byte order mark is no part of any text. A sample that
misses some of the entries is fine, one without any caption is bad.

Class labels of samples, as supervised training reads them (`data.labels`).

    cls              a member that holds the class: its name, or its number from 0
    json:FIELD       a field of the JSON member: a name, a number, or a list of them; `json:a.b` descends

The classes (`model.classes`) are a list of names, a file with a name on each line, or only their number.

Samples by number: a store reads one sample's members in one range read, decodes the image, picks out captions and label.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flexiclip.data.images import ImageError, decode_image
from flexiclip.data.index import ShardIndex, index_shards, require_whole
from flexiclip.data.members import ChangedError, read_members
from flexiclip.data.reading import DEFAULT, Retries
from flexiclip.data.remote import shard_name
from flexiclip.data.worker_watch import Note, silent
from flexiclip.errors import UserError, one_line

_LONGEST_TEXT = 2**24  # bytes of a member that holds captions, or of a sample's json
_LONGEST_CAPTION = 2**13  # characters; what lies beyond is cut off, no text tower reads so far
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LINE_END = re.compile("\r\n|\n|\r")  # what str.splitlines also splits at may stand inside a caption: U+2028, U+0085, ...
_MARK = "\ufeff"


class BadSample(Exception):  # noqa: N818 (a fact about the data, met in every large set)
    """A sample that cannot be used: which one, and why. `key` is empty when the whole shard is bad."""

    def __init__(self, shard: str, key: str, reason: str) -> None:
        super().__init__(shard, key, reason)
        self.shard, self.key, self.reason = shard, key, reason

    def __str__(self) -> str:
        # A key may hold anything, a terminal's commands too.
        return one_line(": ".join(filter(None, (self.shard, self.key, self.reason))))

    def as_dict(self) -> dict[str, str]:
        """The line of bad_samples.jsonl."""
        return {"shard": self.shard, "key": self.key, "reason": self.reason}


def read_captions(shard: str, key: str, members: Mapping[str, bytes], specs: Sequence[str]) -> tuple[str, ...]:
    """The captions that `specs` (see the module) name, in order. Raises BadSample when specs are given and none is found."""
    texts: list[str] = []
    present = False
    for spec in specs:
        name, _, selector = spec.partition(":")
        if name in members:
            found = _select(shard, key, name, members[name], selector)
            present = present or bool(found)
            texts += [stripped[:_LONGEST_CAPTION] for text in found if (stripped := text.strip().lstrip(_MARK).strip())]
    if specs and not texts:
        raise BadSample(shard, key, "empty caption" if present else f"no caption: none of {', '.join(specs)}")
    unicode = tuple(text for text in texts if not _LONE_SURROGATE.search(text))  # JSON can escape what UTF-8 cannot hold
    if texts and not unicode:
        raise BadSample(shard, key, "caption is not Unicode")
    return unicode


def _select(shard: str, key: str, name: str, data: bytes, selector: str) -> list[str]:
    if is_json(name):
        return [text for text in json_values(shard, key, data, selector) if isinstance(text, str)]
    text = decode_text(shard, key, name, data)
    return text_lines(text) if selector == "lines" else [text]


def text_lines(text: str) -> list[str]:
    """The lines of a text, however it ends them, and nothing else that Unicode calls a line."""
    return _LINE_END.split(text)


def is_json(name: str) -> bool:
    """Whether a member holds JSON."""
    return name.split(".")[-1] == "json"


def json_values(shard: str, key: str, data: bytes, selector: str) -> list[Any]:
    """What stands at the dotted `selector` of a JSON member: the items of a list, one value, or nothing. Raises BadSample."""
    value = parse_json(shard, key, data)
    for part in selector.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, list) else [] if value is None else [value]


def parse_json(shard: str, key: str, data: bytes) -> Any:
    """The value of a JSON member. Raises BadSample."""
    try:
        return json.loads(decode_text(shard, key, "json", data))
    except (ValueError, RecursionError) as error:
        raise BadSample(shard, key, f"json cannot be parsed: {error}") from None


def decode_text(shard: str, key: str, name: str, data: bytes) -> str:
    """The text of a member, without a byte order mark. Raises BadSample."""
    if len(data) > _LONGEST_TEXT:
        raise BadSample(shard, key, f"caption too long: {name} has {len(data)} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadSample(shard, key, f"{name} is not UTF-8") from None


MOST_CLASSES = 1 << 20


def class_names(classes: int | str | tuple[str, ...]) -> tuple[str, ...]:
    """The names that `model.classes` stands for. Raises UserError for a file that cannot be read, and for names given twice."""
    if isinstance(classes, str):
        try:
            lines = text_lines(Path(classes).read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"model.classes={classes} is no file with a class name on each line: {error}") from None
        classes = tuple(name for line in lines if (name := line.strip()))
    count = classes if isinstance(classes, int) else len(classes)
    if not 2 <= count <= MOST_CLASSES:
        raise UserError(f"model.classes: {count} classes; expected 2 to {MOST_CLASSES}")
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else classes
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"model.classes names {name!r} twice")
        seen.add(name)
    return names


@dataclass(frozen=True)
class Labels:
    """Where a sample's label stands, and which classes there are."""

    spec: str
    classes: tuple[str, ...]

    @property
    def member(self) -> str:
        """The member that is read."""
        return self.spec.partition(":")[0]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def read(self, shard: str, key: str, members: Mapping[str, bytes]) -> tuple[int, ...]:
        """The numbers of a sample's classes, at least one. Raises BadSample."""
        name, _, selector = self.spec.partition(":")
        if name not in members:
            raise BadSample(shard, key, f"no label: it has no {name}")
        data = members[name]
        values = json_values(shard, key, data, selector) if is_json(name) else [decode_text(shard, key, name, data).strip()]
        if not values:
            raise BadSample(shard, key, f"no label: {self.spec} is empty")
        numbers = [self._number(value) for value in values]
        if None in numbers:
            wrong = str(values[numbers.index(None)])[:100]
            raise BadSample(shard, key, f"label {wrong!r} is none of the {len(self.classes)} classes")
        return tuple(dict.fromkeys(number for number in numbers if number is not None))

    def _number(self, value: Any) -> int | None:
        """A name is looked up; what is none of the names may be a number."""
        text = str(value)
        found = self._numbers.get(text)
        if found is None and text.isdecimal() and len(text) < 10 and int(text) < len(self.classes):
            return int(text)
        return found


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
