"""The argument parser of every command, and the types of its options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

from flexiclip.errors import UserError


class Once(argparse.Action):
    """Store a value. An option that is given twice is an error, because the first value would be lost."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        """Called by argparse for every value."""
        given = vars(namespace).setdefault("given", set())
        if option is not None and self.dest in given:
            parser.error(f"{option} is given twice")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UserError for a wrong command line: one line, exit code 2."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.register("action", None, Once)

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """Write a message. argparse's own method hides errors of standard output."""
        if message and file is not None:
            file.write(message)

    def error(self, message: str) -> NoReturn:
        """Called by argparse for a wrong command line."""
        raise UserError(f"{message}{_fix(message)}; see {self.prog} --help")


_KEY_WITH_DASHES = re.compile(r"--?([a-z_]+(?:\.[a-z_]+)+|seed|run_dir|objective|init)(=.*)?")
"""A dotted key, or one that belongs to no section, written as an option."""


def _fix(message: str) -> str:
    """Return the likely fix of unrecognized arguments in parentheses, or "" for other messages and for misspelled options."""
    named, _, rest = message.partition("unrecognized arguments: ")
    words = rest.split()
    if named or not words:
        return ""
    dashed = _KEY_WITH_DASHES.fullmatch(words[0])
    if dashed:
        value = dashed[2] or f"={words[1] if len(words) > 1 else 'VALUE'}"
        return f" (a key of the recipe has no dashes: write {dashed[1]}{value})"
    if "=" in words[0] and not words[0].startswith("-"):
        return " (write key=value before the options)"
    return "" if words[0].startswith("-") else " (the shell makes several words of a range without quotes)"


Command = Callable[[argparse.Namespace], int | None]
"""Runs a command with its arguments; returns its exit code, where None means 0."""


def add_command(commands: argparse._SubParsersAction[Parser], name: str, command: Command, text: str) -> Parser:
    """Add a command and return its parser. `text` says what the command does."""
    sub = commands.add_parser(name, help=text, description=text)
    sub.set_defaults(command=command)
    return sub


def add_group(
    commands: argparse._SubParsersAction[Parser], name: str, text: str, metavar: str
) -> argparse._SubParsersAction[Parser]:
    """Add a command that only has commands of its own, and return these."""
    group = commands.add_parser(name, help=text, description=text)
    return group.add_subparsers(required=True, metavar=metavar, parser_class=Parser)


def each_once(option: str, values: Sequence[str]) -> list[str]:
    """Return the values of an option that may be repeated. Raises UserError if a value is given twice."""
    for number, value in enumerate(values):
        if value in values[:number]:
            raise UserError(f"{option} {value} is given twice; give it once")
    return list(values)


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def lengths(text: str) -> list[int]:
    """Grid sides, separated by commas."""
    return _numbers(text, "grid sides such as 5,8,15")


def widths(text: str) -> list[int]:
    """Numbers of columns, separated by commas."""
    return _numbers(text, "columns such as 64,128")


def _numbers(text: str, expected: str) -> list[int]:
    try:
        return [positive(part.strip()) for part in text.split(",")]
    except (argparse.ArgumentTypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text[:200]!r} is not a list of {expected}") from None
