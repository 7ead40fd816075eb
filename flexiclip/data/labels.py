"""Class labels of samples, as supervised training reads them (`data.labels`).

    cls              a member that holds the class: its name, or its number from 0
    json:FIELD       a field of the JSON member: a name, a number, or a list of them; `json:a.b` descends

The classes (`model.classes`) are a list of names, a file with a name on each line, or only their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flexiclip.data.fields import BadSample, decode_text, is_json, json_values, text_lines
from flexiclip.errors import UserError

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
