"""The two exceptions that are said in one line instead of a traceback.

The command line prints the text of either on one line: a user's mistake exits with code 2, a run that cannot go on with 1. Every
other exception is a defect of ours, exits with 1 and keeps its traceback.
"""

from __future__ import annotations

_LONGEST = 2000  # characters of a line: a value that a hostile file made long must not fill a screen


def one_line(text: str) -> str:
    """The text on one line that a terminal may be sent: white space joined, control characters and the like escaped, cut."""
    line = " ".join(text[: 4 * _LONGEST].split())
    shown = line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
    return shown if shown.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)


class UserError(ValueError):
    """Bad input, said in one line: what is wrong, where it stands, how to mend it."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class RunError(RuntimeError):
    """What ends a run that was begun rightly, said in one line: a lost rank, a full disk, numbers that are no longer finite."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))
