"""The two exceptions that are said in one line instead of a traceback.

The command line prints the text of either on one line: a user's mistake exits with code 2, a run that cannot go on with 1. Every
other exception is a defect of ours, exits with 1 and keeps its traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """Bad input, said in one line: what is wrong, where it stands, how to mend it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class RunError(RuntimeError):
    """What ends a run that was begun rightly, said in one line: a lost rank, a full disk, numbers that are no longer finite."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
