"""Writes parts of the reference from the code, as a hook of mkdocs.

A page of docs/reference/ marks the place with a line such as `<!-- generated: commands -->`. When the site is built, the line is
replaced by what the function of that name in PARTS returns. mkdocs.yml names this file under `hooks`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flexiclip.config.explain import KeyDoc

MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return the text of a page with its marks replaced. mkdocs calls this for each page."""
    return MARK.sub(lambda found: PARTS[found[1]](), markdown)


def commands() -> str:
    """Return a section for each command: how it is called, and a table of its arguments and options."""
    from flexiclip.cli import _parser

    return "\n".join(line for parser in leaves(_parser()) for line in _command(parser))


def leaves(parser: argparse.ArgumentParser, summary: str = "") -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers that run something: `flexiclip data check`, not `flexiclip data`. The help of each is its description."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        parser.description = parser.description or summary
        yield parser
    for group in groups:
        helps = {choice.dest: choice.help or "" for choice in group._choices_actions}
        for name, sub in group.choices.items():
            yield from leaves(sub, helps.get(name, ""))


def _command(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from ["", f"## {parser.prog}", "", _sentence(parser.description or ""), ""]
    yield from ["```text", _usage(parser), "```", "", "| argument | meaning |", "|---|---|"]
    for action in parser._actions:
        if action.help != argparse.SUPPRESS and action.dest != "help":
            text = (action.help or "") % {"default": action.default}
            needed = " (required)" if action.option_strings and action.required else ""
            yield f"| `{_invocation(action)}`{needed} | {cell(text or f'default: {action.default}')} |"


def _usage(parser: argparse.ArgumentParser) -> str:
    """Return the usage, wrapped at a fixed width: argparse would ask the terminal for its own."""
    formatter = argparse.HelpFormatter(parser.prog, width=86)
    formatter.add_usage(None, parser._actions, parser._mutually_exclusive_groups, prefix="")
    return re.sub(r"\[-h\] ?", "", formatter.format_help().rstrip(), count=1)


def _invocation(action: argparse.Action) -> str:
    """Return `--suite SUITE`, or `model` for an argument that is known by its position."""
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return value if action.metavar else action.dest
    names = ", ".join(action.option_strings)
    return names if action.nargs == 0 else f"{names} [{value}]" if action.nargs == "?" else f"{names} {value}"


def _sentence(text: str) -> str:
    """Return a description as a sentence. argparse's descriptions have no capital letter and no full stop."""
    return text[:1].upper() + text[1:] + "."


def cell(text: str) -> str:
    """Return a text as a cell of a table, which a bar or a new line would end."""
    return plain(text).replace("|", "\\|").replace("\n", " ")


def plain(text: str) -> str:
    """Escape a text: Markdown would take an angle bracket for a tag, and asterisks for emphasis."""
    return text.replace("<", "&lt;").replace("*", "\\*")


def recipe_keys() -> str:
    """Return a section for each section of a recipe, and in it each key with its type, its default and its meaning."""
    from flexiclip.config.explain import keys, sections

    about = {"": "These keys belong to no section.", **sections()}
    found: dict[str, list[KeyDoc]] = {}
    for key in keys():
        above = max((name for name in about if not name or key.key.startswith(f"{name}.")), key=len)
        found.setdefault(above, []).append(key)
    lines: list[str] = []
    for name, inside in found.items():
        lines += ["", f"## `{name}`" if name else "## The recipe itself", "", plain(about[name])]
        lines += [line for key in inside for line in _key(key)]
    return "\n".join(lines)


def _key(key: KeyDoc) -> list[str]:
    from flexiclip.config.explain import REQUIRED

    default = REQUIRED if key.default == REQUIRED else f"default `{key.default}`"
    resume = ", may change in a resumed run" if key.resume else ""
    anchor = re.sub(r"[\[\]]", "", key.key)
    return ["", f"### `{key.key}` {{#{anchor}}}", "", f"*{plain(key.type)}*, {default}{resume}", "", plain(key.description)]


def metrics() -> str:
    """Return a table of the fields of metrics.jsonl: what each means, and the curve that draws it."""
    from flexiclip.train.trackers import FIELDS

    rows = [
        f"| `{name}` | {cell(about.meaning)} | {f'`{about.curve}`' if about.curve else ''} |" for name, about in FIELDS.items()
    ]
    return "\n".join(["| field | meaning | curve |", "|---|---|---|", *rows])


PARTS: dict[str, Callable[[], str]] = {"commands": commands, "recipe_keys": recipe_keys, "metrics": metrics}
"""The names that `generated: NAME` can have, and the functions that write these parts."""
