"""Texts and values out of a sample's members.

Captions are named by `data.captions`, each entry `MEMBER` or `MEMBER:SELECTOR`:

    txt              the member is one caption, line breaks included
    txt:lines        one caption a line, as CLIP_benchmark's retrieval shards have it
    json:caption     a field of a JSON member: a text or a list of texts; `json:a.b` descends

Captions are stripped, cut after 8,192 characters, and empty ones dropped. A byte order mark is no part of any text. A sample that
misses some of the entries is fine, one without any caption is bad.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flexiclip.errors import one_line

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
