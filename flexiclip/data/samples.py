"""Makes samples of the members of tar shards: an image, captions, class labels and metadata.

The entries of `data.captions` name the captions of a sample, as `MEMBER` or `MEMBER:SELECTOR`:

    txt              the whole member is one caption, including line breaks
    txt:lines        each line is a caption, as in CLIP_benchmark's retrieval shards
    json:caption     a field of a JSON member, a text or a list of texts; `json:a.b` reads a nested field

Captions are stripped and cut after 8,192 characters, and empty ones are dropped. A byte order mark is not part of any
text. A sample may lack some of the entries, but a sample without any caption is bad.

`data.labels` names the class label of a sample for supervised training:

    cls              a member that holds the name of the class, or its number from 0
    json:FIELD       a field of a JSON member: a name, a number, or a list of them; `json:a.b` reads a nested field

The classes (`model.classes`) are a list of names, a file with one name per line, or only their number.
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

_LONGEST_TEXT = 2**24  # bytes of a member that holds captions, a label or JSON
_LONGEST_CAPTION = 2**13  # characters; the rest is cut off, because no text tower reads so much
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LINE_END = re.compile("\r\n|\n|\r")  # str.splitlines also splits at U+2028, U+0085 and others, which may be inside a caption
_MARK = "\ufeff"


class BadSample(Exception):  # noqa: N818 (not an error of the program: every large data set has some)
    """A sample that cannot be used, and the reason. `key` is empty if the whole shard is bad."""

    def __init__(self, shard: str, key: str, reason: str) -> None:
        super().__init__(shard, key, reason)
        self.shard, self.key, self.reason = shard, key, reason

    def __str__(self) -> str:
        # A key may contain anything, including control codes of a terminal.
        return one_line(": ".join(filter(None, (self.shard, self.key, self.reason))))

    def as_dict(self) -> dict[str, str]:
        """Return the sample's line of bad_samples.jsonl."""
        return {"shard": self.shard, "key": self.key, "reason": self.reason}


def read_captions(shard: str, key: str, members: Mapping[str, bytes], specs: Sequence[str]) -> tuple[str, ...]:
    """Return the captions that `specs` name, in order (see the module's docstring).

    Raises BadSample if `specs` is not empty and no caption is found.
    """
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
    unicode = tuple(text for text in texts if not _LONE_SURROGATE.search(text))  # JSON escapes can express what UTF-8 cannot
    if texts and not unicode:
        raise BadSample(shard, key, "caption is not Unicode")
    return unicode


def _select(shard: str, key: str, name: str, data: bytes, selector: str) -> list[str]:
    """Return the texts of one member."""
    if is_json(name):
        return [text for text in json_values(shard, key, data, selector) if isinstance(text, str)]
    text = decode_text(shard, key, name, data)
    return text_lines(text) if selector == "lines" else [text]


def text_lines(text: str) -> list[str]:
    """Split a text at its line ends (CR, LF or both), but not at other characters that Unicode calls line ends."""
    return _LINE_END.split(text)


def is_json(name: str) -> bool:
    """Whether a member of this name holds JSON."""
    return name.split(".")[-1] == "json"


def json_values(shard: str, key: str, data: bytes, selector: str) -> list[Any]:
    """Return the values at the dotted `selector` of a JSON member: the items of a list, a single value, or nothing.

    Raises BadSample.
    """
    value = nested(parse_json(shard, key, data), selector)
    return value if isinstance(value, list) else [] if value is None else [value]


def nested(value: Any, selector: str) -> Any:
    """Return what is at a dotted `selector` inside nested mappings: `a.b` is value["a"]["b"]; None if there is nothing."""
    for part in selector.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def parse_json(shard: str, key: str, data: bytes) -> Any:
    """Return the value of a JSON member. Raises BadSample."""
    try:
        return json.loads(decode_text(shard, key, "json", data))
    except (ValueError, RecursionError) as error:
        raise BadSample(shard, key, f"json cannot be parsed: {error}") from None


def decode_text(shard: str, key: str, name: str, data: bytes) -> str:
    """Return the text of a member without a byte order mark. Raises BadSample."""
    if len(data) > _LONGEST_TEXT:
        raise BadSample(shard, key, f"caption too long: {name} has {len(data)} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadSample(shard, key, f"{name} is not UTF-8") from None


MOST_CLASSES = 1 << 20


def class_names(classes: int | str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the class names that `model.classes` stands for.

    Raises UserError for a file that cannot be read and for a name that occurs twice.
    """
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
    """Where a sample's class label is, and the names of all classes."""

    spec: str
    classes: tuple[str, ...]

    @property
    def member(self) -> str:
        """The name of the member that holds the label."""
        return self.spec.partition(":")[0]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def read(self, shard: str, key: str, members: Mapping[str, bytes]) -> tuple[int, ...]:
        """Return the numbers of a sample's classes, at least one. Raises BadSample."""
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
        """Return the number of a class. A value that is not a class name may be a number."""
        text = str(value)
        found = self._numbers.get(text)
        if found is None and text.isdecimal() and len(text) < 10 and int(text) < len(self.classes):
            return int(text)
        return found


@dataclass(frozen=True)
class Sample:
    """An image with its captions and classes.

    `shard`: path or URL. `json`: the bytes of the member `json`, if it was read.
    """

    shard: str
    key: str
    image: Image.Image  # RGB, upright
    captions: tuple[str, ...]  # non-empty, stripped
    json: bytes | None = None
    labels: tuple[int, ...] = ()  # numbers of its classes

    @property
    def name(self) -> str:
        """`SHARD/KEY`, where SHARD is the shard's file name."""
        return f"{shard_name(self.shard)}/{self.key}"

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        """The mapping in the member `json`, or {} if there is none. Raises BadSample if the member cannot be parsed."""
        found = None if self.json is None else parse_json(self.shard, self.key, self.json)
        return found if isinstance(found, dict) else {}


class SampleStore:
    """The samples of a list of shards, by number, in the order of the shards. One sample takes one range read.

    `indices`: the indices of the shards. `image_keys`: the extensions that are tried in turn for the image. `captions`:
    the entries of `data.captions`; with () no captions are read or required. `labels`: None reads none. `besides`:
    further members that are read as well. `retries`: applies to each read. A store can be pickled and is safe to use in
    forked workers.
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
        self.counts = np.array([len(index) for index in self.indices], dtype=np.int64)  # the number of samples in each shard
        self._ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> Sample:
        """Return sample `number` of 0..len-1, counted through the shards. Raises BadSample and IndexError."""
        return self.read(*self.locate(number))

    def locate(self, number: int) -> tuple[int, int]:
        """Return (shard, sample in the shard) of a flat number. This is the inverse of `number`."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - int(self._ends[shard] - self.counts[shard])

    def number(self, shard: int, sample: int) -> int:
        """Return the flat number of a shard's sample."""
        return int(self._ends[shard] - self.counts[shard]) + sample

    def key(self, shard: int, sample: int) -> str:
        """Return the sample's key in its shard."""
        return self.indices[shard].key(sample)

    def read(self, shard: int, sample: int, min_side: int | None = None, note: Note = silent) -> Sample:
        """Read and decode one sample. Raises BadSample.

        `min_side`: see `decode_image`. `note`: called with what is about to be done.
        """
        wanted = {*self.image_keys, *_caption_members(self.caption_specs), *self.besides}
        wanted |= {self.labels.member} if self.labels else set()
        url, key = self.urls[shard], self.key(shard, sample)
        note("reading", url, key)
        members = self._read(shard, sample, wanted)
        note("decoding", url, key)
        return build_sample(url, key, members, self.image_keys, self.caption_specs, min_side, self.labels)

    def captions(self, shard: int, sample: int) -> tuple[str, ...]:
        """Return the captions of a sample without reading its image. Raises BadSample."""
        data = self._read(shard, sample, set(_caption_members(self.caption_specs)))
        return read_captions(self.urls[shard], self.key(shard, sample), data, self.caption_specs)

    def member(self, shard: int, sample: int, extension: str) -> bytes | None:
        """Return any other member, such as `cls`, or None if the sample does not have it. Raises BadSample."""
        return self._read(shard, sample, {extension}).get(extension)

    def _read(self, shard: int, sample: int, wanted: set[str]) -> dict[str, bytes]:
        """Return the bytes of the wanted members that the sample has. Raises BadSample."""
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
    """Return the samples of expanded shards, with their member `json`. `index_cache`: see index.py.

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
    """Make a Sample of its members' bytes. Raises BadSample."""
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
    """Return the names of the members that hold captions."""
    return [spec.partition(":")[0] for spec in specs]
