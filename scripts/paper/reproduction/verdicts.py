"""The verdict on a claim, from the figures of several seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95
"""Confidence of the one-sided t-test over seeds."""


@dataclass(frozen=True)
class Verdict:
    """A verdict in words, with the mean and the spread (standard deviation) over seeds. The spread is None for one seed."""

    mean: float
    spread: float | None
    seeds: int
    words: str


def judge(figures: Sequence[float], above: float) -> Verdict:
    """Return whether the mean over seeds is above a bound, by a one-sided t-test at 95 % in each direction.

    The test accounts for the spread over seeds only, because the scored images are the same for all seeds.
    """
    mean = statistics.fmean(figures)
    if len(figures) == 1:
        return Verdict(mean, None, 1, "one seed: " + ("above" if mean > above else "not above"))
    spread = statistics.stdev(figures)
    margin = float(stats.t.ppf(CONFIDENCE, len(figures) - 1)) * spread / math.sqrt(len(figures))
    if mean - margin > above:
        words = "holds"
    elif mean + margin < above:
        words = "**does not hold**"
    else:
        words = f"within the noise, {'above' if mean > above else 'not above'}"
    return Verdict(mean, spread, len(figures), words)
