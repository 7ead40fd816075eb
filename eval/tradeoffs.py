"""Trade-offs between quality and compute: Pareto fronts, the choice of a length, and cascades of two lengths.

A Pareto front compares lengths and embedding widths: what an image costs to encode, what its embedding costs to store, and how
good it is. A (length, width) is on the front if no other is at least as good in all three and better in one.

    flexiclip eval MODEL --suite S --widths 64,128,256

The choice of a length follows two rules: the shortest length that is nearly as good as the best, and the best length that a
budget allows. One metric represents each task (rows.PRIMARY). A difference below the noise of the data set means nothing: with n
queries, a share p has a standard error of sqrt(p(1-p)/n), and a tolerance far below this error chooses by luck.

    flexiclip eval MODEL --suite S --tolerance 0.5 --budget "5 GFLOPs"

A cascade retrieves images in two steps: short embeddings rank all images for a caption, then long embeddings re-rank the first
K. Both come from the same model, without extra training. The cost is counted in GFLOPs of the image tower, because the text
tower costs the same at every length (CascadePoint has both costs). The other direction, captions for an image, gains nothing
from a cascade: the only image to encode is the query, and it would be encoded twice.

    flexiclip eval MODEL --suite S --cascade 5:15
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from flexiclip_eval.rows import Row, primary_metric

from flexiclip.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class FrontPoint:
    """A length and a width that no other pair beats."""

    model: str
    pretrained: str
    seqhw: int | None
    width: int  # columns of the embedding
    gflops: float  # of the image tower for one image
    value: float  # of the metric, in 0..1


@dataclass(frozen=True)
class Front:
    """The Pareto front of one task over all models that were scored at several widths, cheapest point first."""

    dataset: str
    task: str
    metric: str
    points: tuple[FrontPoint, ...]


def fronts(rows: Sequence[Row]) -> list[Front]:
    """Return the front of each task that has rows with a width and a known cost, in the order of the rows."""
    tasks: dict[tuple[str, str, str], list[FrontPoint]] = {}
    for row in rows:
        if row.width is not None and row.gflops is not None:
            metric = primary_metric(row.metrics)
            point = FrontPoint(row.model, row.pretrained, row.seqhw, row.width, row.gflops, row.metrics[metric])
            tasks.setdefault((row.dataset, row.task, metric), []).append(point)
    found = []
    for task, points in tasks.items():
        best = pareto_front(points, lambda point: (point.value, -point.gflops, -point.width))
        found.append(Front(*task, tuple(sorted(best, key=lambda point: (point.gflops, point.width)))))
    return found


def pareto_front(points: Iterable[T], goods: Callable[[T], tuple[float, ...]]) -> list[T]:
    """Return the points that no other point beats, in their order.

    goods: a point -> numbers of which more is better. A point beats another if it has at least as much of each of them, and
    more of at least one.
    """
    scored = [(point, goods(point)) for point in points]

    def beaten(own: tuple[float, ...]) -> bool:
        return any(other != own and all(a >= b for a, b in zip(other, own, strict=True)) for _, other in scored)

    return [point for point, own in scored if not beaten(own)]


TOLERANCE = 1.0
"""The default tolerance, in percentage points of the primary metric."""

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
    """The length that a rule chose for one model on one task. seqhw, value and costs are None if no length fits the budget."""

    dataset: str
    task: str
    model: str
    pretrained: str
    metric: str
    rule: str  # in words: `shortest within 1 point of the best`, `best within 5 GFLOPs`
    best_seqhw: int  # the best length of the whole curve
    best_value: float
    seqhw: int | None = None
    value: float | None = None  # of the metric, in 0..1
    gflops: float | None = None  # of the image tower for one image
    ms: float | None = None  # time per image in the batches of this evaluation
    width: int | None = None  # columns of the embeddings, as in Row


@dataclass(frozen=True)
class Budget:
    """An upper bound on the cost of one image.

    GFLOPs are those of the image tower. ms is 1000 / images_per_s of a row, so it is the time in batches over all ranks.
    """

    limit: float
    unit: Literal["GFLOPs", "ms"]

    def cost(self, row: Row) -> float | None:
        """Return the cost of an image at the length of a row, in `unit`; None if the row does not have it."""
        return row.gflops if self.unit == "GFLOPs" else _ms(row)

    def __str__(self) -> str:
        return f"{self.limit:g} {self.unit}"


def parse_budget(text: str) -> Budget:
    """Parse `5 GFLOPs`, `300 MFLOPs`, `20 ms` or `0.1 s`. The space is optional and case is ignored. Raises UserError."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*([a-z]+)\s*", text.lower())
    unit = _UNITS.get(match[2] if match[2] in ("us", "ms", "s") else match[2].removesuffix("s") + "s") if match else None
    if match is None or unit is None or not 0 < float(match[1]) < math.inf:
        raise UserError(f"--budget {text!r}: write a number and GFLOPs (MFLOPs, TFLOPs) or ms (us, s), for example '5 GFLOPs'")
    return Budget(float(match[1]) * unit[1], unit[0])


def choose(rows: Sequence[Row], *, tolerance: float = TOLERANCE, budget: Budget | None = None) -> list[Choice]:
    """Choose lengths for every (data set, task, model, width) that has at least two lengths, in the order of the rows.

    tolerance: accept lengths whose primary metric is within this many percentage points of the best. budget: also choose the
    best length within this cost. Raises UserError for a negative tolerance.
    """
    check_tolerance(tolerance)
    curves: dict[tuple[str, str, str, str, int | None], list[Row]] = {}
    for row in rows:
        if row.seqhw is not None:  # a model that does not state its length has only that one
            curves.setdefault((row.dataset, row.task, row.model, row.pretrained, row.width), []).append(row)
    choices = []
    for curve in curves.values():
        if len(curve) > 1:
            choices.append(shortest_within(curve, tolerance))
            choices += [best_within(curve, budget)] if budget is not None else []
    return choices


def check_tolerance(tolerance: float) -> None:
    """Raise UserError unless the tolerance is a finite number of points, 0 or more."""
    if not 0 <= tolerance < math.inf:
        raise UserError(f"--tolerance {tolerance:g}: write points of the metric, 0 or more, for example 0.5")


def shortest_within(curve: Sequence[Row], tolerance: float) -> Choice:
    """Choose the shortest length whose primary metric is at most `tolerance` percentage points below the best of the curve."""
    metric = primary_metric(curve[0].metrics)
    enough = max(row.metrics[metric] for row in curve) - tolerance / 100 - 1e-9  # 50 % is within 1 point of 51 % in floats too
    chosen = min((row for row in curve if row.metrics[metric] >= enough), key=lambda row: row.seqhw or 0)
    return _choice(curve, chosen, f"shortest within {tolerance:g} {'point' if tolerance == 1 else 'points'} of the best")


def best_within(curve: Sequence[Row], budget: Budget) -> Choice:
    """Choose the length with the best primary metric among those within the budget; among equals, the shortest."""
    metric = primary_metric(curve[0].metrics)
    fitting = [row for row in curve if (cost := budget.cost(row)) is not None and cost <= budget.limit]
    chosen = max(fitting, key=lambda row: (row.metrics[metric], -(row.seqhw or 0))) if fitting else None
    return _choice(curve, chosen, f"best within {budget}")


def sentence(choice: Choice) -> str:
    """Return a choice as one line of text: data set, metric, length, value, cost, rule and the best length."""
    where = f"{choice.dataset} · {choice.metric}"
    if choice.seqhw is None or choice.value is None:
        return f"{where}: no evaluated length satisfies the rule ({choice.rule}), or its cost is unknown"
    cost = "" if choice.gflops is None else f", {choice.gflops:.3g} GFLOPs"
    cost += "" if choice.ms is None else f", {choice.ms:.3g} ms"
    best = f"{choice.best_value:.1%} at {choice.best_seqhw}"
    return f"{where}: seqhw {choice.seqhw} ({choice.value:.1%}{cost}), {choice.rule} ({best})"


def _choice(curve: Sequence[Row], chosen: Row | None, rule: str) -> Choice:
    first, metric = curve[0], primary_metric(curve[0].metrics)
    best = max(curve, key=lambda row: (row.metrics[metric], -(row.seqhw or 0)))
    assert best.seqhw is not None, "a curve has lengths"
    whole = (first.dataset, first.task, first.model, first.pretrained, metric, rule, best.seqhw, best.metrics[metric])
    if chosen is None:
        return Choice(*whole, width=first.width)
    return Choice(*whole, chosen.seqhw, chosen.metrics[metric], chosen.gflops, _ms(chosen), first.width)


def _ms(row: Row) -> float | None:
    return 1000 / row.images_per_s if row.images_per_s else None


SHORTLISTS = (5, 10, 20, 50, 100, 200, 500, 1000)
"""The values of K on a curve, as far as they are below the size of the gallery; `shortlists` adds 0 and that size as the ends."""


@dataclass(frozen=True)
class CascadePoint:
    """The recall and the cost of a cascade at one K. Both costs are None if the cost of the model is unknown."""

    shortlist: int
    """K, the number of images that are re-ranked. 0 is the short length alone, the size of the gallery the long length alone."""
    metrics: dict[str, float]
    """image_retrieval_recall@k in 0..1."""
    reranked: float
    """Share of the gallery that is in the shortlist of any caption."""
    gflops_per_image: float | None = None
    """GFLOPs per gallery image if all captions of the data set are asked once and long embeddings are kept: the short length for
    every image, and the long length for the images in the shortlist of ANY caption. At K = 0 this is the short length alone. At
    a large K it is MORE than the long length alone, which needs no short pass; a cascade is worth it only below that. The last
    point is the long length alone, without a short pass."""
    gflops_per_query: float | None = None
    """GFLOPs that one more caption adds if no long embedding has been kept: K times the long length. The short embeddings of the
    gallery are not counted, because they are the index and are computed once."""


@dataclass(frozen=True)
class CascadeCurve:
    """Recall against compute for the cascade of a short and a long length; the points are in ascending order of K."""

    dataset: str
    task: str
    model: str
    pretrained: str
    short: int  # seqhw
    long: int  # seqhw
    points: tuple[CascadePoint, ...]


def parse_cascade(text: str) -> tuple[int, int]:
    """Parse `5:15` into the short and the long seqhw, (5, 15). Raises UserError."""
    match = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", text.strip())
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise UserError(f"--cascade {text!r}: write SHORT:LONG, two of the lengths evaluated, for example 5:15")
    return int(match[1]), int(match[2])


def cascade_pair(lengths: Sequence[int | None], wanted: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return (short, long): the pair that is wanted, else the shortest and the longest length; None if there is only one length.

    Raises UserError if a wanted length is not evaluated.
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
    """Return the values of K for a gallery of `gallery` images: 0, those of SHORTLISTS below `gallery`, and `gallery` itself."""
    return [0, *(k for k in SHORTLISTS if k < gallery), gallery]


def priced(points: Sequence[CascadePoint], gallery: int, short: float | None, long: float | None) -> tuple[CascadePoint, ...]:
    """Add the costs to the points of a cascade. short, long: GFLOPs per image at the two lengths, or None if unknown."""
    if short is None or long is None:
        return tuple(points)
    costs = [long if point.shortlist >= gallery else short + point.reranked * long for point in points]
    return tuple(
        replace(point, gflops_per_image=cost, gflops_per_query=point.shortlist * long)
        for point, cost in zip(points, costs, strict=True)
    )
