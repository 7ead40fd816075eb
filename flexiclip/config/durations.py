"""Durations of a recipe: `500` steps, `"3 epochs"`, `"2M samples"`, `"5%"` of the run, `"10 minutes"`, or `"30 TFLOPs"`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from flexiclip.errors import UserError

Unit = Literal["steps", "epochs", "samples", "percent", "minutes", "TFLOPs"]

_UNITS: dict[str, Unit] = {
    "": "steps",
    "step": "steps",
    "steps": "steps",
    "epoch": "epochs",
    "epochs": "epochs",
    "ep": "epochs",
    "sample": "samples",
    "samples": "samples",
    "%": "percent",
    "percent": "percent",
    "minute": "minutes",
    "minutes": "minutes",
    "min": "minutes",
}
_TERAS = {"gflops": 1e-3, "tflops": 1.0, "pflops": 1e3, "eflops": 1e6, "zflops": 1e9}
_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_LONGEST = 1e15  # in any unit: whole numbers up to here are exact as floats, and their sums do not overflow
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?"
_FORM = re.compile(rf"\s*({_NUMBER})\s*([kmb]?)\s*([a-z%]*)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Duration:
    """A value in a unit. `to_steps` converts it to optimiser steps."""

    value: float
    unit: Unit

    def __str__(self) -> str:
        number = str(int(self.value)) if float(self.value).is_integer() else repr(self.value)
        return number if self.unit == "steps" else f"{number}%" if self.unit == "percent" else f"{number} {self.unit}"


def parse_duration(text: str | int | float | Duration) -> Duration:
    """Read a duration. Raises UserError that lists the accepted forms."""
    if isinstance(text, Duration):
        return text
    match = None if isinstance(text, bool) else _FORM.fullmatch(str(text))
    suffix, unit = (match[2].lower(), match[3].lower()) if match else ("", "?")
    if suffix == "m" and unit in ("in", "inute", "inutes"):  # this m belongs to minutes and does not mean a million
        suffix, unit = "", "m" + unit
    if match is None or unit not in {**_UNITS, **_TERAS}:
        raise UserError(f"{text!r} is no duration: write 500, '3 epochs', '2M samples', '5%', '10 minutes' or '30 TFLOPs'")
    value = float(match[1]) * _MULTIPLES[suffix] * _TERAS.get(unit, 1)
    if value > _LONGEST:
        raise UserError(f"{text!r} is no duration that ends: the longest is {_LONGEST:.0e}")
    return Duration(value, _UNITS.get(unit, "TFLOPs"))


def to_steps(duration: Duration, *, batch: int, samples: int | None = None, total: int | None = None) -> int:
    """A duration in optimiser steps, which are at least 1 for a duration above 0.

    batch: global batch size. samples: training samples per epoch, None if unknown. total: steps of the whole run.
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
                "TFLOPs": "a number of FLOPs can stand only in train.steps",
            }.get(duration.unit, "a time cannot stand here, only for train.save_every")
            raise UserError(f"the duration '{duration}' cannot be turned into steps: {why}")
    return 0 if duration.value == 0 else max(1, math.ceil(steps - 1e-9))
