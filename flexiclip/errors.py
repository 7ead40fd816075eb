"""The one exception that a user's mistake raises.

The command line prints its text on one line and exits with code 2; every other exception is a defect of ours and exits with 1.
"""

from __future__ import annotations


class UserError(ValueError):
    """Bad input, said in one line: what is wrong, where it stands, how to mend it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
