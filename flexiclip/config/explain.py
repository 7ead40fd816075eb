"""Documents each key of a recipe: `flexiclip explain KEY`, the reference page, and which keys a resumed run may change.

    keys()                              # every key, in the order of the schema
    explain("train.steps")              # the text that the command prints; a section lists its keys
    changeable()                        # the keys and sections whose values may differ when a run is resumed

All of it is read from the fields of flexiclip/config/schema/, where a key is declared with its description.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeGuard, Union

import yaml

from flexiclip.config.keys import Duration
from flexiclip.config.load import WORDS, to_plain
from flexiclip.config.schema import Config
from flexiclip.config.yaml_text import Dumper
from flexiclip.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

REQUIRED = "required"
"""Takes the place of a default for a key that has none."""

_UNIONS = (Union, types.UnionType)
_PLURALS = {"integer": "integers", "number": "numbers", "text": "texts"}


@dataclass(frozen=True)
class KeyDoc:
    """One key. In `patch.stages[].start`, the brackets stand for any item of a list."""

    key: str
    type: str
    default: str  # as YAML, or REQUIRED
    description: str
    resume: bool  # whether a resumed run may have another value


def keys() -> list[KeyDoc]:
    """Return every key of a recipe, in the order of the schema."""
    return [doc for doc, is_section in _entries(Config) if not is_section]


def sections() -> dict[str, str]:
    """Return a mapping from the dotted name of each section to its description, in the order of the schema."""
    return {doc.key: doc.description for doc, is_section in _entries(Config) if is_section}


def changeable() -> tuple[str, ...]:
    """Return the keys and sections whose values may differ when a run is resumed."""
    return tuple(doc.key for doc, _ in _entries(Config) if doc.resume)


def explain(name: str = "", config: Config | None = None) -> str:
    """Return the text about a key, or about all keys of a section; without a name, an overview.

    With a config, each key's value in it is shown as well, and without a name all keys are. Raises UserError for an unknown name.
    """
    if not name and config is None:
        return _overview()
    wanted = _without_items(name)
    found = [doc for doc in keys() if not wanted or _is_under(_without_items(doc.key), wanted)]
    if not found:
        raise UserError(f"unknown key {name[:100]!r}: {_near(wanted)}")
    heading = [_wrapped(f"{name}: {sections()[name]}")] if name in sections() else []
    return "\n\n".join([*heading, *(_about(doc, config) for doc in found)]) + "\n"


@functools.cache
def _entries(cls: type[DataclassInstance], prefix: str = "", resume: bool = False) -> Sequence[tuple[KeyDoc, bool]]:
    """Return each field of a dataclass, and whether it is a section. The default of a section is left out.

    A section, and a list of mappings, is followed by what is inside it. `resume`: whether all fields may change on resume.
    """
    hints, entries = typing.get_type_hints(cls), list[tuple[KeyDoc, bool]]()
    for field in dataclasses.fields(cls):
        hint, name, free = hints[field.name], prefix + field.name, resume or field.metadata["resume"]
        options = typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else (hint,)
        is_section = any(map(_is_section, options))
        default = "" if is_section else _default(field)
        entries.append((KeyDoc(name, _type(hint), default, field.metadata["description"], free), is_section))
        inside = next(filter(_is_section, _parts(hint)), None)
        if inside is not None:
            entries += _entries(inside, f"{name}." if is_section else f"{name}[].", free)
    return entries


def _is_section(hint: object) -> TypeGuard[type[DataclassInstance]]:
    return dataclasses.is_dataclass(hint) and hint is not Duration


def _parts(hint: object) -> Iterator[object]:
    """Yield a type and all types inside it."""
    yield hint
    for part in typing.get_args(hint):
        yield from _parts(part)


def _type(hint: object) -> str:
    """Return a type in words: `integer or null`, `list of numbers`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return " or ".join(map(_type, args))
    if origin is Literal:
        *first, last = map(str, args)
        return f"{', '.join(first)} or {last}"
    if origin is tuple and args[-1] is Ellipsis:
        item = _type(args[0])
        return f"list of {_PLURALS.get(item, f'({item})' if ' or ' in item else item)}"
    if origin is tuple:
        return f"[{', '.join(map(_type, args))}]"
    if _is_section(hint):
        return "{" + ", ".join(field.name for field in dataclasses.fields(hint)) + "}"
    return "mapping" if origin is dict else WORDS[hint].removeprefix("an ").removeprefix("a ")


def _default(field: dataclasses.Field[object]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return _yaml(field.default_factory())
    return REQUIRED if field.default is dataclasses.MISSING else _yaml(field.default)


def _yaml(value: object) -> str:
    """Return a value in one line, as a recipe or an override takes it."""
    written: str = yaml.dump([to_plain(value)], Dumper=Dumper, default_flow_style=True, width=10**6, allow_unicode=True)
    return written.strip()[1:-1]


def _without_items(name: str) -> str:
    return re.sub(r"\[\d*\]", "", name)


def _is_under(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _near(name: str) -> str:
    """Return what to write instead of an unknown name."""
    known = [_without_items(doc.key) for doc, _ in _entries(Config)]
    above, inside, part = "", list[str](), ""
    for part in name.split("."):
        inside = list(dict.fromkeys(key.removeprefix(above).partition(".")[0] for key in known if key.startswith(above)))
        if part not in inside:
            break
        above += f"{part}."
    if not inside:
        return f"{above[:-1]} is a key, not a section"
    lasts = {key: key.rpartition(".")[2] for key in known}
    alike = [] if above else difflib.get_close_matches(part, set(lasts.values()), n=1)
    near = (
        [key for key in known if lasts[key] == part]
        or [above + word for word in difflib.get_close_matches(part, inside)]
        or [key for key in known if lasts[key] in alike]
    )
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"the keys {f'of {above[:-1]} ' if above else ''}are {', '.join(inside)}"


def _overview() -> str:
    """Return the text about each section and each key outside of sections."""
    rows = [(doc.key, doc.description) for doc, _ in _entries(Config) if "." not in doc.key]
    width = max(len(name) for name, _ in rows) + 2
    lines = [_wrapped(name.ljust(width) + description, indent=" " * width) for name, description in rows]
    rest = (
        "`flexiclip explain SECTION` lists the keys of a section, and `flexiclip explain SECTION.KEY` explains one. A recipe may "
        "also hold `base: RECIPE`, the recipe that it starts from."
    )
    return "\n".join([*lines, "", _wrapped(rest)]) + "\n"


def _about(doc: KeyDoc, config: Config | None) -> str:
    rows = [("type", doc.type), ("default", doc.default), ("on resume", "may change" if doc.resume else "must stay the same")]
    if config is not None and "[]" not in doc.key:
        rows.append(("in recipe", _value(config, doc.key)))
    facts = [_wrapped(f"  {name + ':':<11}{text}", indent=" " * 13) for name, text in rows]
    return "\n".join([doc.key, _wrapped(f"  {doc.description}", indent="  "), *facts])


def _value(config: Config, key: str) -> str:
    value: object = config
    for name in key.split("."):
        if value is None:  # model.text
            return "its section is null"
        value = getattr(value, name)
    return _yaml(value)


def _wrapped(text: str, indent: str = "") -> str:
    """Return the text in lines that fit the terminal, and of at most 100 characters."""
    width = max(40, min(100, shutil.get_terminal_size((100, 24)).columns))
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
