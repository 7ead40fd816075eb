"""The Pareto front of length and width: what an image costs to encode, what its embedding costs to keep, and how good it is.

    flexiclip eval MODEL --suite S --widths 64,128,256

A pair of the two is on the front when no other is at least as good for no more GFLOPs an image and no wider an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..rows import Row
from .length import primary_metric


@dataclass(frozen=True)
class FrontPoint:
    """A length and a width that no other beats."""

    model: str
    pretrained: str
    seqhw: int | None
    width: int  # columns
    gflops: float  # of one image
    value: float  # of the metric, in 0..1


@dataclass(frozen=True)
class Front:
    """Of one task, over all models that were scored at several widths; cheapest first."""

    dataset: str
    task: str
    metric: str
    points: tuple[FrontPoint, ...]


def fronts(rows: Sequence[Row]) -> list[Front]:
    """One for each task whose rows have widths and say what they cost, in the order of the rows."""
    tasks: dict[tuple[str, str], list[FrontPoint]] = {}
    metrics: dict[tuple[str, str], str] = {}
    for row in rows:
        if row.width is not None and row.gflops is not None:
            metric = metrics.setdefault((row.dataset, row.task), primary_metric(row))
            point = FrontPoint(row.model, row.pretrained, row.seqhw, row.width, row.gflops, row.metrics[metric])
            tasks.setdefault((row.dataset, row.task), []).append(point)
    return [Front(*task, metrics[task], _unbeaten(points)) for task, points in tasks.items()]


def _unbeaten(points: Sequence[FrontPoint]) -> tuple[FrontPoint, ...]:
    left = [point for point in points if not any(_beats(other, point) for other in points)]
    return tuple(sorted(left, key=lambda point: (point.gflops, point.width)))


def _beats(one: FrontPoint, other: FrontPoint) -> bool:
    """Whether `one` is as good as the other in all three and better in one."""
    gains = one.value - other.value, other.gflops - one.gflops, other.width - one.width
    return min(gains) >= 0 and max(gains) > 0
