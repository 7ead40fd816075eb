"""How a section of a recipe declares its keys, and how it refuses a value.

    steps: Duration = key(parse_duration(1000), "Length of the run.", resume=True)
    image: ImageTowerConfig = section(ImageTowerConfig, "The image tower.")
    start: Duration = field(metadata=about("From when on."))                          # a key that must be given

The description is metadata of the field. `flexiclip explain`, the reference page and the rule of which keys may change on a
resumed run all read it there (flexiclip/config/explain.py), so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any, TypeVar

from flexiclip.errors import UserError

T = TypeVar("T")
Size = int | tuple[int, int]
"""A side in pixels or cells, or (height, width)."""


def about(description: str, *, resume: bool = False) -> dict[str, Any]:
    """The metadata of a key. resume: whether a run may be resumed with another value of the key, or of any key in the section."""
    return {"description": description, "resume": resume}


def key(default: T, description: str, *, resume: bool = False) -> T:
    """A key with an immutable default; see `about`. Its type is the default's, so that mypy checks the default."""
    return field(default=default, metadata=about(description, resume=resume))


def section(build: Callable[[], T], description: str, *, resume: bool = False) -> T:
    """A section or mapping, which `build` makes with its defaults; see `about`."""
    return field(default_factory=build, metadata=about(description, resume=resume))


def require(condition: bool, message: str) -> None:
    """Raise UserError with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def positive(section: str, obj: object, *names: str) -> None:
    """Raise UserError unless every number in the named fields of a section is above 0. Fields that are null are skipped."""
    for name in names:
        value = getattr(obj, name)
        if value is not None:
            values = value if isinstance(value, tuple) else (value,)
            require(all(v > 0 for v in values), f"{section}.{name}={value} must be positive")


LONGEST_S = 1e8
"""Three years in seconds. The clocks of torch and of the operating system overflow beyond that."""


def seconds(section: str, obj: object, *names: str) -> None:
    """Raise UserError unless the named fields of a section are times above 0 and of at most LONGEST_S."""
    positive(section, obj, *names)
    for name in names:
        require(getattr(obj, name) <= LONGEST_S, f"{section}.{name}={getattr(obj, name)} must be at most {LONGEST_S:.0e} seconds")


def sides(size: Size) -> str:
    """A size as a text: 224x224, the height first."""
    height, width = pair(size)
    return f"{height}x{width}"


def pair(size: Size) -> tuple[int, int]:
    """(height, width) of a size that is given as one side or as both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
