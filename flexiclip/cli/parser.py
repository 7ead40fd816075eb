"""The parser of every command, and the types of its options."""

from __future__ import annotations

import argparse
from typing import NoReturn

from flexiclip.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for a wrong command line."""
        if message.startswith("unrecognized arguments") and "=" in message:
            message += " (key=value stands before the options)"
        raise UserError(f"{message}; see {self.prog} --help")


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def lengths(text: str) -> list[int]:
    """Grid sides with commas between them."""
    return _numbers(text, "grid sides such as 5,8,15")


def widths(text: str) -> list[int]:
    """Numbers of columns with commas between them."""
    return _numbers(text, "columns such as 64,128")


def _numbers(text: str, expected: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of {expected}") from None
