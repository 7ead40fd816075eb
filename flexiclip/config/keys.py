"""How a section of a recipe declares its keys, the values that a key may have (durations, sizes), and how one is refused.

    steps: Duration = key(parse_duration(1000), "Length of the run.", resume=True)
    image: ImageTowerConfig = section(ImageTowerConfig, "The image tower.")
    start: Duration = field(metadata=about("When this stage begins."))               # a key that must be given

The description is metadata of the field. `flexiclip explain`, the reference page and the rule of which keys may change on a
resumed run all read it there (flexiclip/config/explain.py), so that they cannot disagree.

A duration is written as `500` steps, `"3 epochs"`, `"2M samples"`, `"5%"` of the run, `"10 minutes"`, or `"30 TFLOPs"`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from flexiclip.errors import UserError

T = TypeVar("T")
Size = int | tuple[int, int]
"""A side in pixels or cells, or (height, width)."""
Unit = Literal["steps", "epochs", "samples", "percent", "minutes", "TFLOPs"]

_WRITTEN: dict[Unit, tuple[str, ...]] = {
    "steps": ("", "step", "steps"),
    "epochs": ("ep", "epoch", "epochs"),
    "samples": ("sample", "samples"),
    "percent": ("%", "percent"),
    "minutes": ("min", "minute", "minutes"),
}
_UNITS = {text: unit for unit, texts in _WRITTEN.items() for text in texts}
_TERAS = {"gflops": 1e-3, "tflops": 1.0, "pflops": 1e3, "eflops": 1e6, "zflops": 1e9}
_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_LONGEST = 1e15  # in any unit: whole numbers up to here are exact as floats, and their sums do not overflow
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?"
_FORM = re.compile(rf"\s*({_NUMBER})\s*([kmb]?)\s*([a-z%]*)\s*", re.IGNORECASE)


def about(description: str, *, resume: bool = False) -> dict[str, str | bool]:
    """Return the metadata of a key or section.

    `resume`: whether a run may be resumed with another value of the key, or of any key in the section.
    """
    return {"description": description, "resume": resume}


def key(default: T, description: str, *, resume: bool = False) -> T:
    """Declare a key with an immutable default; see `about`. Its type is the default's, so that mypy checks the default."""
    return field(default=default, metadata=about(description, resume=resume))


def section(build: Callable[[], T], description: str, *, resume: bool = False) -> T:
    """Declare a section or mapping, which `build` makes with its defaults; see `about`."""
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
    """Return a size as a text: 224x224, the height first."""
    height, width = pair(size)
    return f"{height}x{width}"


def pair(size: Size) -> tuple[int, int]:
    """Return (height, width) of a size that is given as one side or as both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@dataclass(frozen=True)
class Duration:
    """A value in a unit. `to_steps` converts it to optimiser steps."""

    value: float
    unit: Unit

    def __str__(self) -> str:
        number = str(int(self.value)) if float(self.value).is_integer() else repr(self.value)
        return number if self.unit == "steps" else f"{number}%" if self.unit == "percent" else f"{number} {self.unit}"


def parse_duration(value: object) -> Duration:
    """Return the duration that a text, a number or a Duration stands for. Raises UserError that lists the accepted forms."""
    if isinstance(value, Duration):
        return value
    match = None if isinstance(value, bool) else _FORM.fullmatch(str(value))
    suffix, unit = (match[2].lower(), match[3].lower()) if match else ("", "?")
    if suffix == "m" and unit in ("in", "inute", "inutes"):  # this m belongs to minutes and does not mean a million
        suffix, unit = "", "m" + unit
    if match is None or unit not in {**_UNITS, **_TERAS}:
        raise UserError(f"{value!r} is not a duration: write 500, '3 epochs', '2M samples', '5%', '10 minutes' or '30 TFLOPs'")
    number = float(match[1]) * _MULTIPLES[suffix] * _TERAS.get(unit, 1)
    if number > _LONGEST:
        raise UserError(f"{value!r} is too long: write a duration of at most {_LONGEST:.0e}")
    return Duration(number, _UNITS.get(unit, "TFLOPs"))


def to_steps(duration: Duration, *, batch: int, samples: int | None = None, total: int | None = None) -> int:
    """Return a duration in optimiser steps, which are at least 1 for a duration above 0.

    batch: global batch size. samples: training samples per epoch, None if unknown. total: steps of the whole run. Raises
    UserError for a unit that needs a number which is None, and for minutes and TFLOPs.
    """
    match duration.unit:
        case "steps":
            steps = duration.value
        case "samples":
            steps = duration.value / batch
        case "epochs" if samples is not None:
            steps = duration.value * samples / batch
        case "percent" if total is not None:
            steps = duration.value / 100 * total
        case _:
            why = {
                "epochs": "the size of an epoch is unknown for a sequential source",
                "percent": "train.steps itself cannot be a percentage",
                "TFLOPs": "only train.steps takes a number of TFLOPs",
            }.get(duration.unit, "only train.save_every takes a time")
            raise UserError(f"the duration '{duration}' cannot be turned into steps: {why}")
    return 0 if duration.value == 0 else max(1, math.ceil(steps - 1e-9))
