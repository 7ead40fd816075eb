"""The two exceptions that are shown as one line instead of a traceback.

The command line prints the text of either exception on one line. A user's mistake (UserError) exits with code 2, and a
run that cannot go on (RunError) exits with code 1. Every other exception is a defect of ours: it exits with code 1 and
keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST = 2000  # characters; a very long value from a hostile file must not fill the screen


def one_line(text: str) -> str:
    """Return the text as one line that is safe to print on a terminal.

    White space is joined, control characters and the like are escaped, and what exceeds 2000 characters is cut off.
    """
    line = " ".join(text[: 4 * _LONGEST].split())
    shown = line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
    return shown if shown.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)


def listed(names: Iterable[str], shown: int = 3) -> str:
    """Return the first names in alphabetical order, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - shown} more" if len(ordered) > shown else ""
    return (", ".join(ordered[:shown]) or "nothing else") + more


def counted(number: int, what: str) -> str:
    """Return a number with the noun that it counts: 1 sample, 2,000 samples."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


class UserError(ValueError):
    """Bad input. The message is one line that says what is wrong, where it is, and how to fix it."""

    told: bool | None = None
    """Whether rank 0 has the same message, so that this rank does not print it. None: not known, for the ranks had not met."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class RunError(RuntimeError):
    """The end of a run that started correctly. The message is one line.

    Examples are a lost rank, a full disk, or numbers that are no longer finite.
    """

    told: bool | None = None
    """As for UserError."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))
