"""Keeps the records docs/explanation/paper/STUDY.json, and judges claims by the figures of several seeds.

A record has the figures and curves of every seed of a study that was run. Several calls can add seeds to it. If a record was made
with another budget, the first new seed replaces it, because the two cannot be compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from scripts.paper.study import Measured, Series
from scripts.paper.trainings import Budget

CONFIDENCE = 0.95
"""Confidence of the one-sided t-test over seeds."""


@dataclass
class Record:
    """All seeds of a study. `machine` describes the machine of the last seed."""

    study: str
    budget: dict[str, float]
    machine: dict[str, str] = field(default_factory=dict)
    seeds: dict[str, Measured] = field(default_factory=dict)
    """Seed, as a string -> its measurements."""

    def figures(self, key: str) -> list[float]:
        """Return a figure of each seed that has it."""
        return [each.figures[key] for each in self.seeds.values() if key in each.figures]

    def curves(self, key: str) -> tuple[Series, Series]:
        """Return the mean over seeds of each curve, point by point, and (lowest, highest) of each point's value."""
        found = [each.curves[key] for each in self.seeds.values() if key in each.curves]
        means: Series = {}
        ranges: Series = {}
        for label in found[0] if found else ():
            runs = [each[label] for each in found]
            columns = list(zip(*runs, strict=True))
            means[label] = [(fmean([x for x, _ in points]), fmean([y for _, y in points])) for points in columns]
            ranges[label] = [(min(y for _, y in points), max(y for _, y in points)) for points in columns]
        return means, ranges


def read(folder: Path, study: str) -> Record | None:
    """Return the record of a study. None if there is none."""
    path = folder / f"{study}.json"
    if not path.is_file():
        return None
    whole = json.loads(path.read_text(encoding="utf-8"))
    return Record(**{**whole, "seeds": {seed: Measured(**each) for seed, each in whole["seeds"].items()}})


def add(folder: Path, study: str, budget: Budget, seed: int, measured: Measured, machine: dict[str, str]) -> None:
    """Write a seed into the record, where it replaces an earlier one with the same number."""
    record = read(folder, study)
    if record is None or record.budget != asdict(budget):
        record = Record(study, asdict(budget))
    seeds = {**record.seeds, str(seed): measured}
    record.seeds = dict(sorted(seeds.items(), key=lambda item: int(item[0])))
    record.machine = machine
    folder.mkdir(parents=True, exist_ok=True)
    whole: dict[str, Any] = asdict(record)
    (folder / f"{study}.json").write_text(json.dumps(_rounded(whole), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


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
    mean = fmean(figures)
    if len(figures) == 1:
        return Verdict(mean, None, 1, "one seed: " + ("above" if mean > above else "not above"))
    spread = stdev(figures)
    margin = float(stats.t.ppf(CONFIDENCE, len(figures) - 1)) * spread / math.sqrt(len(figures))
    if mean - margin > above:
        words = "holds"
    elif mean + margin < above:
        words = "**does not hold**"
    else:
        words = f"within the noise, {'above' if mean > above else 'not above'}"
    return Verdict(mean, spread, len(figures), words)
