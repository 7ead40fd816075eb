"""README and docs/ as the tests read them: their blocks, the commands in these, and what a command line names."""

from __future__ import annotations

import dataclasses
import re
import shlex
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexiclip.config import Config, Duration
from flexiclip.config.load import _read_override, _set, find_recipe, from_dict, parse_yaml, read_recipe
from flexiclip.errors import UserError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACEHOLDER = re.compile(r"[A-Z][A-Z_/]*(\.\.\.)?")
"""MODEL, RECIPE, SHARDS...: what a reader puts something of their own for."""
FENCE = re.compile(r"^```(\w*)[ ]*([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of a page between two fences."""

    page: Path
    line: int
    language: str
    info: str
    """What follows the language: `title="FILE"` makes the block that file, `skip` keeps the tutorial's test from running it."""
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def title(self) -> str | None:
        """The file that the block is."""
        found = re.search(r'title="([^"]+)"', self.info)
        return found[1] if found else None


def blocks(page: Path, *languages: str) -> list[Block]:
    """The page's blocks in these languages, in all of them without any."""
    text = page.read_text(encoding="utf-8")
    found = [Block(page, text.count("\n", 0, m.start()) + 1, m[1], m[2], m[3]) for m in FENCE.finditer(text)]
    return [block for block in found if not languages or block.language in languages]


def command_lines(block: Block) -> Iterator[list[str]]:
    """The words of each command of a block. Of a loop, the body with the first value."""
    variables: dict[str, str] = {}
    for line in block.text.replace("\\\n", " ").splitlines():
        text = re.sub(r" \[[^\]]*\]", "", line)  # what may be left out: [key=value ...]
        loop = re.fullmatch(r"\s*for (\w+) in (\S+).*; do", text)
        if loop:
            variables[loop[1]] = loop[2]
            continue
        for name, value in variables.items():
            text = text.replace(f"${name}", value)
        words = shlex.split(text, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words and words != ["done"]:
            yield words


def inline_code(page: Path) -> list[str]:
    """What stands between single backticks, outside of blocks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", page.read_text(encoding="utf-8")))


def files_of(page: Path) -> dict[str, Block]:
    """The blocks of a page that are files, by their names. Tutorials go on where others ended, so each has the files of all."""
    pages = [*sorted(page.parent.glob("*.md")), page] if page.parent.name == "tutorials" else [page]
    return {block.title: block for each in pages for block in blocks(each) if block.title}


def schema_keys() -> dict[str, Any]:
    """Every dotted key of a recipe and its type, sections included."""
    return dict(_keys(Config, ""))


def _keys(cls: Any, above: str) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        yield above + field.name, hint
        choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        for choice in choices:
            if dataclasses.is_dataclass(choice) and choice is not Duration:
                yield from _keys(choice, f"{above}{field.name}.")


def check_recipe(recipe: str, overrides: Sequence[str], page: Path) -> None:
    """Raise UserError where the recipe is not there, or an override is not a key with a value of its type."""
    files = files_of(page)
    data: dict[str, Any] = {}
    if recipe in files:
        data = parse_yaml(files[recipe].text, str(files[recipe]))
    elif not PLACEHOLDER.fullmatch(recipe) and recipe != "my.yaml":
        data = read_recipe(str(find_recipe(recipe)))
    for override in overrides:
        key, value = _read_override(override)
        if not PLACEHOLDER.fullmatch(str(value)):
            _set(data, key.split("."), value, key)
        elif key not in schema_keys():
            raise UserError(f"unknown key {key!r}")
    from_dict(Config, data)
