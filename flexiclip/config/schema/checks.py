"""What the sections of a recipe share: sizes, and how a value is refused."""

from __future__ import annotations

from flexiclip.errors import UserError

Size = int | tuple[int, int]
"""A side in pixels or cells, or (height, width)."""


def require(condition: bool, message: str) -> None:
    """Raise UserError with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def positive(section: str, obj: object, *names: str) -> None:
    """Raise UserError for a named field of a section that is neither null nor above 0, all of its numbers."""
    for name in names:
        value = getattr(obj, name)
        if value is not None:
            values = value if isinstance(value, tuple) else (value,)
            require(all(v > 0 for v in values), f"{section}.{name}={value} must be positive")


LONGEST_S = 1e8
"""Seconds, three years: what a clock of torch or of the operating system takes beyond that overflows."""


def seconds(section: str, obj: object, *names: str) -> None:
    """Raise UserError for a named field of a section that is no time to wait for."""
    positive(section, obj, *names)
    for name in names:
        require(getattr(obj, name) <= LONGEST_S, f"{section}.{name}={getattr(obj, name)} must be at most {LONGEST_S:.0e} seconds")


def pair(size: Size) -> tuple[int, int]:
    """(height, width) of a size given as one side or as both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
