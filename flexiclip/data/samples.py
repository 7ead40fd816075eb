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

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from flexiclip.data.images import ImageError, decode_image
from flexiclip.data.index import ShardIndex, index_shards, require_whole
from flexiclip.data.reading import DEFAULT, ChangedError, Retries, read_members
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


@dataclass(frozen=True)
class Members:
    """The bytes of a sample's members by extension, and the sample's shard and key. Its methods raise BadSample."""

    shard: str
    key: str
    content: Mapping[str, bytes]

    def bad(self, reason: str) -> BadSample:
        """Return the error that this sample cannot be used."""
        return BadSample(self.shard, self.key, reason)

    def text(self, name: str) -> str:
        """Return the text of a member without a byte order mark."""
        data = self.content[name]
        if len(data) > _LONGEST_TEXT:
            raise self.bad(f"caption too long: {name} has {len(data)} bytes")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise self.bad(f"{name} is not UTF-8") from None

    def json(self, name: str) -> object:
        """Return the value of a JSON member."""
        try:
            return json.loads(self.text(name))
        except (ValueError, RecursionError) as error:
            raise self.bad(f"json cannot be parsed: {error}") from None

    def values(self, spec: str) -> list[object]:
        """Return what `MEMBER` or `MEMBER:SELECTOR` names: the items of a list, a single value, or nothing."""
        name, _, selector = spec.partition(":")
        if name not in self.content:
            return []
        if name.split(".")[-1] == "json":
            value = nested(self.json(name), selector)
            return value if isinstance(value, list) else [] if value is None else [value]
        text = self.text(name)
        return list(text_lines(text)) if selector == "lines" else [text.strip()]

    def captions(self, specs: Sequence[str]) -> tuple[str, ...]:
        """Return the captions that `specs` name, in order. A sample without any caption is bad, unless there are no specs."""
        found = [text for spec in specs for text in self.values(spec) if isinstance(text, str)]
        texts = [stripped[:_LONGEST_CAPTION] for text in found if (stripped := text.strip().lstrip(_MARK).strip())]
        if specs and not texts:
            raise self.bad("empty caption" if found else f"no caption: none of {', '.join(specs)}")
        unicode = tuple(text for text in texts if not _LONE_SURROGATE.search(text))  # JSON escapes can express what UTF-8 cannot
        if texts and not unicode:
            raise self.bad("caption is not Unicode")
        return unicode


def text_lines(text: str) -> list[str]:
    """Split a text at its line ends (CR, LF or both), but not at other characters that Unicode calls line ends."""
    return _LINE_END.split(text)


def nested(value: object, selector: str) -> object:
    """Return what is at a dotted `selector` inside nested mappings: `a.b` is value["a"]["b"]; None if there is nothing."""
    for part in selector.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


MOST_CLASSES = 1 << 20


def class_names(classes: int | str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the class names that `model.classes` stands for.

    Raises UserError for a file that cannot be read and for a name that occurs twice.
    """
    if isinstance(classes, str):
        try:
            lines = text_lines(Path(classes).read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"model.classes={classes} is not a file with a class name on each line: {error}") from None
        classes = tuple(name for line in lines if (name := line.strip()))
    count = classes if isinstance(classes, int) else len(classes)
    if not 2 <= count <= MOST_CLASSES:
        raise UserError(f"model.classes: {count} classes; expected 2 to {MOST_CLASSES}")
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else classes
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise UserError(f"model.classes names {twice!r} twice: give each class a name of its own")
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

    def read(self, members: Members) -> tuple[int, ...]:
        """Return the numbers of a sample's classes, at least one. Raises BadSample."""
        if self.member not in members.content:
            raise members.bad(f"no label: it has no {self.member}")
        numbers = []
        for text in map(str, members.values(self.spec)):
            number = self._numbers.get(text)
            if number is None:  # a text that is not a class name may be a number
                if not (text.isdecimal() and len(text) < 10 and int(text) < len(self.classes)):
                    raise members.bad(f"label {text[:100]!r} is none of the {len(self.classes)} classes")
                number = int(text)
            numbers.append(number)
        if not numbers:
            raise members.bad(f"no label: {self.spec} is empty")
        return tuple(dict.fromkeys(numbers))


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

    @cached_property
    def meta(self) -> dict[str, object]:
        """The mapping in the member `json`, or {} if there is none. Raises BadSample if the member cannot be parsed."""
        found = None if self.json is None else Members(self.shard, self.key, {"json": self.json}).json("json")
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
        self.caption_specs, self.labels, self.retries = tuple(captions), labels, retries
        self._caption_members = {spec.partition(":")[0] for spec in captions}
        self._wanted = {*self.image_keys, *self._caption_members, *besides} | ({labels.member} if labels else set())
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
        url, key = self.urls[shard], self.key(shard, sample)
        note("reading", url, key)
        members = self._read(shard, sample, self._wanted)
        note("decoding", url, key)
        return build_sample(members, self.image_keys, self.caption_specs, min_side, self.labels)

    def captions(self, shard: int, sample: int) -> tuple[str, ...]:
        """Return the captions of a sample without reading its image. Raises BadSample."""
        return self._read(shard, sample, self._caption_members).captions(self.caption_specs)

    def member(self, shard: int, sample: int, extension: str) -> bytes | None:
        """Return any other member, such as `cls`, or None if the sample does not have it. Raises BadSample."""
        return self._read(shard, sample, {extension}).content.get(extension)

    def _read(self, shard: int, sample: int, wanted: set[str]) -> Members:
        """Return the wanted members that the sample has. Raises BadSample."""
        index = self.indices[shard]
        try:
            content = read_members(index.url, [m for m in index.members(sample) if m.name in wanted], self.retries)
        except ChangedError as error:
            raise BadSample(index.url, index.key(sample), str(error)) from None
        except OSError as error:
            raise BadSample(index.url, index.key(sample), f"cannot be read: {error}") from None
        return Members(index.url, index.key(sample), content)


def open_samples(
    urls: Sequence[str], image_keys: Sequence[str], captions: Sequence[str], index_cache: str | None = None
) -> SampleStore:
    """Return the samples of expanded shards, with their member `json`. `index_cache`: see index.py.

    Raises UserError for a damaged shard.
    """
    return SampleStore(require_whole(index_shards(urls, index_cache)), image_keys, captions, besides=("json",))


def build_sample(
    members: Members, image_keys: Sequence[str], captions: Sequence[str], min_side: int | None, labels: Labels | None = None
) -> Sample:
    """Make a Sample of its members. Raises BadSample."""
    data = next((members.content[name] for name in image_keys if name in members.content), None)
    if data is None:
        raise members.bad(f"no image: none of {', '.join(image_keys)}")
    texts = members.captions(captions)
    numbers = labels.read(members) if labels else ()
    try:
        image = decode_image(data, min_side)
    except ImageError as error:
        raise members.bad(f"image cannot be decoded: {error}") from None
    return Sample(members.shard, members.key, image, texts, members.content.get("json"), numbers)
