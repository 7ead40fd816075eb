"""Reads the results of the evaluations of one seed from their results.json and analysis.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from flexiclip_eval.analysis.ensembles import at_cost
from flexiclip_eval.tradeoffs import pareto_front

LENGTHS = (3, 4, 5, 6, 10, 15)
"""The grid sides of the recipes, which give 9 to 225 tokens for images of 60 px."""

BOTH = ("openmoji", "noto-seen")
"""The data sets with unseen concepts in a trained style, and with trained concepts in an unseen style."""
RECALLS = ("image_retrieval_recall@5", "text_retrieval_recall@5")

SUITES = {
    "retrieval": (BOTH, RECALLS),
    "classes": (BOTH, ("acc1",)),
    "noto": (("noto",), RECALLS),
    "noto_classes": (("noto",), ("acc1",)),
}
"""Suite -> its data sets and metrics. The quality of a model is the mean over all of them."""

Curve = list[tuple[float, float]]


@cache
def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


class Outcomes:
    """The results of one seed. `folder` is the seed's folder `evaluations`."""

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
        """Return the mean over the suite's data sets and metrics, from 0 to 100.

        how: the part of the evaluation's name after the suite. width: the number of columns of the embeddings, None for all.
        """
        sets, metrics = SUITES[suite]
        rows = self._rows(f"{model}.{suite}{how}", seqhw, width)
        return 100 * fmean([rows[each]["metrics"][metric] for each in sets for metric in metrics])

    def mean_quality(self, model: str, lengths: Sequence[int] = LENGTHS, *, suite: str = "retrieval") -> float:
        """Return the mean quality over several lengths."""
        return fmean([self.quality(model, seqhw, suite=suite) for seqhw in lengths])

    def by_tokens(self, model: str, lengths: Sequence[int] = LENGTHS, *, suite: str = "retrieval") -> Curve:
        """Return (tokens, quality) at each length."""
        return [(float(seqhw * seqhw), self.quality(model, seqhw, suite=suite)) for seqhw in lengths]

    def by_cost(self, model: str, lengths: Sequence[int] = LENGTHS, *, cost: str = "gflops", how: str = "") -> Curve:
        """Return (cost of an image, quality in retrieval) at each length. cost: the column `gflops` or `images_per_s`."""
        costs = [self._rows(f"{model}.retrieval{how}", seqhw, None)[BOTH[0]][cost] for seqhw in lengths]
        return [(each, self.quality(model, seqhw, how=how)) for each, seqhw in zip(costs, lengths, strict=True)]

    def analysis(self, model: str) -> dict[str, Any]:
        """Return the name of each analysis of the model -> its numbers."""
        found: dict[str, Any] = _read(self.folder / "analyze" / f"{model}.retrieval.cue-conflict" / "analysis.json")["analyses"]
        return found

    def _rows(self, name: str, seqhw: int, width: int | None) -> dict[str, dict[str, Any]]:
        """Return data set -> the row of a length and width."""
        rows = _read(self.folder / "eval" / name / "results.json")
        return {row["dataset"]: row for row in rows if row["seqhw"] == seqhw and row.get("width") == width}


def at_equal_cost(curve: Curve, other: Curve) -> list[tuple[float, float]]:
    """Return (value, the other curve's value at the same cost) for each point of `curve` in the other's range of costs."""
    ordered = sorted(other)
    inside = [(cost, value) for cost, value in curve if ordered[0][0] <= cost <= ordered[-1][0]]
    return [(value, at_cost(ordered, cost)) for cost, value in inside]


def front(curves: Mapping[str, Curve]) -> Curve:
    """Return the Pareto front of all curves, cheapest first: points for which no other is at least as good for no more cost."""
    points = {point for curve in curves.values() for point in curve}
    return sorted(pareto_front(points, lambda point: (-point[0], point[1])))
