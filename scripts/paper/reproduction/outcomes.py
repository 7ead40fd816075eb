"""What the evaluations of one seed found, read from their results.json and analysis.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from flexiclip_eval.analysis.ensembles import at_cost

LENGTHS = (3, 4, 5, 6, 10, 15)
"""The grids of the recipes: 9 to 225 tokens of 60 px images."""

BOTH = ("openmoji", "noto-seen")
"""Unseen concepts in a trained style, trained concepts in an unseen style."""
RECALLS = ("image_retrieval_recall@5", "text_retrieval_recall@5")

SUITES = {
    "retrieval": (BOTH, RECALLS),
    "classes": (BOTH, ("acc1",)),
    "noto": (("noto",), RECALLS),
    "noto_classes": (("noto",), ("acc1",)),
}
"""Suite -> its data sets and metrics, the mean of all of which is the quality of a model."""

Curve = list[tuple[float, float]]


@cache
def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


class Outcomes:
    """folder: `evaluations` of one seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def quality(
        self,
        model: str,
        seqhw: int,
        *,
        suite: str = "retrieval",
        how: str = "",
        width: int | None = None,
    ) -> float:
        """Mean over the suite's sets and metrics, in points of 100. how: what the evaluation's name has after the suite."""
        sets, metrics = SUITES[suite]
        rows = self._rows(f"{model}.{suite}{how}", seqhw, width)
        return 100 * fmean([rows[each]["metrics"][metric] for each in sets for metric in metrics])

    def mean_quality(self, model: str, lengths: Sequence[int] = LENGTHS, *, suite: str = "retrieval") -> float:
        """Over several lengths."""
        return fmean([self.quality(model, seqhw, suite=suite) for seqhw in lengths])

    def by_tokens(self, model: str, lengths: Sequence[int] = LENGTHS, *, suite: str = "retrieval") -> Curve:
        """(tokens, quality) at each length."""
        return [(float(seqhw * seqhw), self.quality(model, seqhw, suite=suite)) for seqhw in lengths]

    def by_cost(self, model: str, lengths: Sequence[int] = LENGTHS, *, cost: str = "gflops", how: str = "") -> Curve:
        """(cost of an image, quality in retrieval) at each length. cost: a row's `gflops`, or `images_per_s`."""
        costs = [self._rows(f"{model}.retrieval{how}", seqhw, None)[BOTH[0]][cost] for seqhw in lengths]
        return [(each, self.quality(model, seqhw, how=how)) for each, seqhw in zip(costs, lengths, strict=True)]

    def analysis(self, model: str) -> dict[str, Any]:
        """The numbers of each analysis of the model, by its name."""
        found: dict[str, Any] = _read(self.folder / "analyze" / f"{model}.retrieval.cue-conflict" / "analysis.json")["analyses"]
        return found

    def _rows(self, name: str, seqhw: int, width: int | None) -> dict[str, dict[str, Any]]:
        """Data set -> the row of a length and width."""
        rows = _read(self.folder / "eval" / name / "results.json")
        return {row["dataset"]: row for row in rows if row["seqhw"] == seqhw and row.get("width") == width}


def at_equal_cost(curve: Curve, other: Curve) -> list[tuple[float, float]]:
    """(value, the other's value at the same cost) at each point of `curve` whose cost lies within the other's range."""
    ordered = sorted(other)
    inside = [(cost, value) for cost, value in curve if ordered[0][0] <= cost <= ordered[-1][0]]
    return [(value, at_cost(ordered, cost)) for cost, value in inside]


def front(curves: Mapping[str, Curve]) -> Curve:
    """The points of all curves that no point is better than for no more cost, cheapest first."""
    every = sorted({point for points in curves.values() for point in points}, key=lambda point: (point[0], -point[1]))
    kept: Curve = []
    for point in every:
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept
