"""The Pareto front of length and width: what an image costs to encode, what its embedding costs to keep, and how good it is.

    flexiclip eval MODEL --suite S --widths 64,128,256

A pair of the two is on the front when no other is at least as good for no more GFLOPs an image and no wider an embedding.

Choosing a length from a curve: the shortest that is nearly as good as the best, and the best that a budget pays for.

    flexiclip eval MODEL --suite S --tolerance 0.5 --budget "5 GFLOPs"

One metric stands for a task (PRIMARY). A difference below the noise of the data set is no difference: with n queries a share p
has a standard error of sqrt(p(1-p)/n), so a tolerance much below it chooses by luck.

A cascade: captions rank the images by short embeddings, and long ones re-rank the first K. One model, no extra training.

    flexiclip eval MODEL --suite S --cascade 5:15

What it costs is counted in GFLOPs of the image tower, the text tower being the same at every length:

- `gflops_per_image`, of a gallery image when all captions of the data set are asked once and long embeddings are kept: the short
  length for every image, and the long one for those that stand in ANY caption's shortlist. At K = 0 that is the short length
  alone; at large K it is MORE than the long length alone, which needs no short pass. A cascade pays below that.
- `gflops_per_query`: K times the long length, what one more caption adds when no long embedding has been kept. The short
  embeddings of the gallery are not in it: they are the index, made once.

Captions that are searched with an image gain nothing: the only image to encode is the query, and it would be encoded twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flexiclip_eval.rows import Row

from flexiclip.errors import UserError


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


PRIMARY = ("acc1", "mean_average_precision", "image_retrieval_recall@5", "acc", "lp_acc1")
"""The metric that stands for a task: the first of these that its rows have."""

TOLERANCE = 1.0
"""Points, of the two curves' percentages."""

_UNITS: dict[str, tuple[Literal["GFLOPs", "ms"], float]] = {
    "mflops": ("GFLOPs", 1e-3),
    "gflops": ("GFLOPs", 1.0),
    "tflops": ("GFLOPs", 1e3),
    "us": ("ms", 1e-3),
    "ms": ("ms", 1.0),
    "s": ("ms", 1e3),
}


@dataclass(frozen=True)
class Choice:
    """A length chosen for one model on one task. seqhw, value and cost are None when no length keeps to the budget."""

    dataset: str
    task: str
    model: str
    pretrained: str
    metric: str
    rule: str  # in words: `shortest within 1 point of the best`, `best within 5 GFLOPs`
    best_seqhw: int  # of the whole curve
    best_value: float
    seqhw: int | None = None
    value: float | None = None  # of the metric, in 0..1
    gflops: float | None = None  # of one image
    ms: float | None = None  # an image takes, in this evaluation's batches
    width: int | None = None  # of the embeddings, see Row


@dataclass(frozen=True)
class Budget:
    """What one image may cost. GFLOPs: of the image tower. ms: 1000 / images_per_s of a row, so in batches, over all ranks."""

    limit: float
    unit: Literal["GFLOPs", "ms"]

    def cost(self, row: Row) -> float | None:
        """What an image costs at the row's length, in `unit`; None where the row does not know."""
        return row.gflops if self.unit == "GFLOPs" else _ms(row)

    def __str__(self) -> str:
        return f"{self.limit:g} {self.unit}"


def parse_budget(text: str) -> Budget:
    """`5 GFLOPs`, `300 MFLOPs`, `20 ms`, `0.1 s`; a space is optional, letter case does not count. Raises UserError."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*([a-z]+)\s*", text.lower())
    unit = _UNITS.get(match[2] if match[2] in ("us", "ms", "s") else match[2].removesuffix("s") + "s") if match else None
    if match is None or unit is None or not 0 < float(match[1]) < math.inf:
        raise UserError(f"--budget {text!r}: write a number and GFLOPs (MFLOPs, TFLOPs) or ms (us, s), for example '5 GFLOPs'")
    return Budget(float(match[1]) * unit[1], unit[0])


def choose(rows: Sequence[Row], *, tolerance: float = TOLERANCE, budget: Budget | None = None) -> list[Choice]:
    """The choices for every (data set, task, model) of the rows that has at least two lengths, in the order of the rows.

    tolerance: points of the primary metric below the best that are still good enough. Raises UserError for a negative one.
    """
    check_tolerance(tolerance)
    curves: dict[tuple[str, str, str, str, int | None], list[Row]] = {}
    for row in rows:
        if row.seqhw is not None:  # a length without a number has no neighbours to choose from
            curves.setdefault((row.dataset, row.task, row.model, row.pretrained, row.width), []).append(row)
    choices = []
    for curve in curves.values():
        if len(curve) > 1:
            choices.append(shortest_within(curve, tolerance))
            choices += [best_within(curve, budget)] if budget is not None else []
    return choices


def check_tolerance(tolerance: float) -> None:
    """Raise UserError for what is no number of points."""
    if not 0 <= tolerance < math.inf:
        raise UserError(f"--tolerance {tolerance:g}: write points of the metric, 0 or more, for example 0.5")


def shortest_within(curve: Sequence[Row], tolerance: float) -> Choice:
    """The shortest length whose primary metric is at most `tolerance` points below the best of the curve."""
    metric = primary_metric(curve[0])
    enough = max(row.metrics[metric] for row in curve) - tolerance / 100 - 1e-9  # 50 % is within 1 point of 51 %, in floats too
    chosen = min((row for row in curve if row.metrics[metric] >= enough), key=lambda row: row.seqhw or 0)
    return _choice(curve, chosen, f"shortest within {tolerance:g} {'point' if tolerance == 1 else 'points'} of the best")


def best_within(curve: Sequence[Row], budget: Budget) -> Choice:
    """The length with the best primary metric among those that keep to the budget; of equals the shortest."""
    metric = primary_metric(curve[0])
    fitting = [row for row in curve if (cost := budget.cost(row)) is not None and cost <= budget.limit]
    chosen = max(fitting, key=lambda row: (row.metrics[metric], -(row.seqhw or 0))) if fitting else None
    return _choice(curve, chosen, f"best within {budget}")


def primary_metric(row: Row) -> str:
    """The metric that stands for the row's task."""
    return next((name for name in PRIMARY if name in row.metrics), next(iter(row.metrics)))


def sentence(choice: Choice) -> str:
    """The choice as a line: what, where, how good, by which rule."""
    where = f"{choice.dataset} · {choice.metric}"
    if choice.seqhw is None or choice.value is None:
        return f"{where}: no length keeps to the rule ({choice.rule}), or none says what it costs"
    cost = "" if choice.gflops is None else f", {choice.gflops:.3g} GFLOPs"
    cost += "" if choice.ms is None else f", {choice.ms:.3g} ms"
    best = f"{choice.best_value:.1%} at {choice.best_seqhw}"
    return f"{where}: seqhw {choice.seqhw} ({choice.value:.1%}{cost}), {choice.rule} ({best})"


def _choice(curve: Sequence[Row], chosen: Row | None, rule: str) -> Choice:
    first, metric = curve[0], primary_metric(curve[0])
    best = max(curve, key=lambda row: (row.metrics[metric], -(row.seqhw or 0)))
    assert best.seqhw is not None, "a curve has lengths"
    whole = (first.dataset, first.task, first.model, first.pretrained, metric, rule, best.seqhw, best.metrics[metric])
    if chosen is None:
        return Choice(*whole, width=first.width)
    return Choice(*whole, chosen.seqhw, chosen.metrics[metric], chosen.gflops, _ms(chosen), first.width)


def _ms(row: Row) -> float | None:
    return 1000 / row.images_per_s if row.images_per_s else None


SHORTLISTS = (5, 10, 20, 50, 100, 200, 500, 1000)
"""The K of a curve, as far as the gallery reaches; 0 and the whole gallery, the two lengths alone, are its ends."""


@dataclass(frozen=True)
class CascadePoint:
    """A cascade at one K."""

    shortlist: int
    """K, the images that are re-ranked; 0 is the short length alone, the size of the gallery the long one alone."""
    metrics: dict[str, float]
    """image_retrieval_recall@k in 0..1."""
    reranked: float
    """Share of the gallery that stands in any caption's shortlist."""
    gflops_per_image: float | None
    """See the module; None where the model's cost is unknown. At the last point the long length alone, without a short pass."""
    gflops_per_query: float | None


@dataclass(frozen=True)
class CascadeCurve:
    """Recall against the compute of one (short, long) pair of lengths, in the order of K."""

    dataset: str
    task: str
    model: str
    pretrained: str
    short: int  # seqhw
    long: int
    points: tuple[CascadePoint, ...]


@dataclass(frozen=True)
class Reranked:
    """What re-ranking K images gave, before it is priced. reranked: see CascadePoint."""

    shortlist: int
    metrics: dict[str, float]
    reranked: float


def parse_cascade(text: str) -> tuple[int, int]:
    """`5:15` -> (5, 15), the short and the long seqhw. Raises UserError."""
    match = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", text.strip())
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise UserError(f"--cascade {text!r}: write SHORT:LONG, two of the lengths evaluated, for example 5:15")
    return int(match[1]), int(match[2])


def cascade_pair(lengths: Sequence[int | None], wanted: tuple[int, int] | None) -> tuple[int, int] | None:
    """(short, long) of the lengths evaluated: those wanted, else the shortest and the longest; None for a single length.

    Raises UserError when a wanted length is not evaluated.
    """
    known = sorted(length for length in lengths if length is not None)
    if wanted is not None and not set(wanted) <= set(known):
        raise UserError(
            f"--cascade {wanted[0]}:{wanted[1]}: both must be evaluated; --seqhw is {','.join(map(str, known)) or 'one'}"
        )
    if wanted is not None:
        return wanted
    return (known[0], known[-1]) if len(known) > 1 else None


def shortlists(gallery: int) -> list[int]:
    """The K of a curve over `gallery` images: 0, the steps of SHORTLISTS, and all of them."""
    return [0, *(k for k in SHORTLISTS if k < gallery), gallery]


def priced(found: Sequence[Reranked], gallery: int, short: float | None, long: float | None) -> tuple[CascadePoint, ...]:
    """The points of a curve. short, long: GFLOPs of an image at the two lengths; None where they are unknown."""
    points = []
    for each in found:
        per_image = per_query = None
        if short is not None and long is not None:
            alone = each.shortlist >= gallery
            per_image = long if alone else short + each.reranked * long
            per_query = each.shortlist * long
        points.append(CascadePoint(each.shortlist, each.metrics, each.reranked, per_image, per_query))
    return tuple(points)
