"""Trade-offs between quality and compute: Pareto fronts, the choice of a length, and cascades of two lengths.

A Pareto front compares lengths and embedding widths: what an image costs to encode, what its embedding costs to store, and how
good it is. A (length, width) is on the front if no other is at least as good in all three and better in one.

    flexiclip eval MODEL --suite S --widths 64,128,256

The choice of a length follows two rules: the shortest length that is nearly as good as the best, and the best length that a
budget allows. One metric represents each task (rows.PRIMARY). A longer length is only taken for better if the difference exceeds
its standard error, because a smaller one is noise. That error is the one of the paired difference over the queries, or, without
the hits of each query, sqrt(a^2 + b^2) of the errors of the two lengths.

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

from flexiclip_eval.rows import Row, primary_metric, short_name, show
from torch import Tensor

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
    label: str | None = None  # as in Row


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
            value = row.metrics[metric]
            point = FrontPoint(row.model, row.pretrained, row.seqhw, row.width, row.gflops, value, row.label)
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
    label: str | None = None  # as in Row
    error: float | None = None  # the standard error of `value`
    rival_seqhw: int | None = None  # the best of the lengths that the rule allows, if it is not the chosen one
    noise: float | None = None  # the standard error of the difference from the rival
    cheapest: str | None = None  # if no length fits the budget: the cheapest one and its cost, in words


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


def choose(
    rows: Sequence[Row], *, tolerance: float = TOLERANCE, budget: Budget | None = None, hits: Sequence[Tensor | None] = ()
) -> list[Choice]:
    """Choose lengths for every (data set, task, model, width) that has at least two lengths, in the order of the rows.

    tolerance: accept lengths whose primary metric is within this many percentage points of the best. budget: also choose the
    best length within this cost. hits: those of each row (tasks.base.Result), for the error of a difference. Raises UserError for
    a negative tolerance.
    """
    check_tolerance(tolerance)
    curves: dict[tuple[object, ...], Curve] = {}
    for row, each in zip(rows, hits or [None] * len(rows), strict=True):
        if row.seqhw is not None:  # a model that does not state its length has only that one
            key = (row.dataset, row.task, row.model, row.pretrained, row.label, row.width)
            curves.setdefault(key, Curve([], [])).add(row, each)
    choices = []
    for curve in curves.values():
        if len(curve.rows) > 1:
            choices.append(shortest_within(curve, tolerance))
            choices += [best_within(curve, budget)] if budget is not None else []
    return choices


@dataclass
class Curve:
    """The rows of one model on one task, one per length, and the hits of each (None if they are not known)."""

    rows: list[Row]
    hits: list[Tensor | None]

    def add(self, row: Row, hits: Tensor | None) -> None:
        """Add a length."""
        self.rows.append(row)
        self.hits.append(hits)

    def noise(self, first: Row, second: Row) -> float | None:
        """Return the standard error of the difference of the primary metric between two rows; None if it is not known."""
        if first is second:
            return 0.0
        a, b = (self.hits[next(i for i, each in enumerate(self.rows) if each is row)] for row in (first, second))
        if a is not None and b is not None and len(a) == len(b):
            return float((a - b).std(correction=0)) / math.sqrt(len(a))
        metric = primary_metric(first.metrics)
        errors = first.error(metric), second.error(metric)
        return None if errors[0] is None or errors[1] is None else math.hypot(errors[0], errors[1])


def check_tolerance(tolerance: float) -> None:
    """Raise UserError unless the tolerance is a finite number of points, 0 or more."""
    if not 0 <= tolerance < math.inf:
        raise UserError(f"--tolerance {tolerance:g}: write points of the metric, 0 or more, for example 0.5")


def shortest_within(curve: Curve, tolerance: float) -> Choice:
    """Choose the shortest length whose primary metric is at most `tolerance` percentage points below the best of the curve.

    A length also qualifies if the best one is not better than it by more than the standard error of the difference.
    """
    metric, best = primary_metric(curve.rows[0].metrics), _best(curve.rows)
    room = tolerance / 100 + 1e-9  # 50 % is within 1 point of 51 % in floats too

    def qualifies(row: Row) -> bool:
        return best.metrics[metric] - row.metrics[metric] <= max(room, curve.noise(best, row) or 0.0)

    chosen = min(filter(qualifies, curve.rows), key=lambda row: row.seqhw or 0)
    rule = f"shortest within {tolerance:g} {'point' if tolerance == 1 else 'points'} of the best"
    return _choice(curve, chosen, rule, best if best.metrics[metric] - chosen.metrics[metric] > room else None)


def best_within(curve: Curve, budget: Budget) -> Choice:
    """Choose the length with the best primary metric among those within the budget.

    The shortest length wins from which the best one does not differ by more than the standard error of the difference.
    """
    metric = primary_metric(curve.rows[0].metrics)
    fitting = [row for row in curve.rows if (cost := budget.cost(row)) is not None and cost <= budget.limit]
    if not fitting:
        costs = [(cost, row.seqhw) for row in curve.rows if (cost := budget.cost(row)) is not None]
        cheapest = f"seqhw {min(costs)[1]} with {min(costs)[0]:.3g} {budget.unit}" if costs else None
        return replace(_choice(curve, None, f"best within {budget}"), cheapest=cheapest)
    best = _best(fitting)
    equal = [row for row in fitting if best.metrics[metric] - row.metrics[metric] <= (curve.noise(best, row) or 0.0)]
    chosen = min(equal, key=lambda row: row.seqhw or 0)
    return _choice(curve, chosen, f"best within {budget}", best if best.metrics[metric] > chosen.metrics[metric] else None)


def _best(rows: Sequence[Row]) -> Row:
    """Return the row with the highest primary metric; among equals, the shortest."""
    metric = primary_metric(rows[0].metrics)
    return max(rows, key=lambda row: (row.metrics[metric], -(row.seqhw or 0)))


def choice_cells(choice: Choice) -> list[str]:
    """Return what a choice says as texts: metric, length, value, GFLOPs, time, and the rule with the best length."""
    metric, best = short_name(choice.metric), f"({show(choice.metric, choice.best_value)} at {choice.best_seqhw})"
    if choice.seqhw is None or choice.value is None:
        why = "the cost of the lengths is unknown" if choice.cheapest is None else f"the cheapest is {choice.cheapest}"
        return [metric, "none", "–", "–", "–", f"no evaluated length satisfies the rule ({choice.rule}): {why}"]
    rule = f"{choice.rule} {best}"
    if choice.rival_seqhw is not None and choice.noise:
        points = f"{100 * choice.noise:.1f} points"
        rule += f"; the difference from seqhw {choice.rival_seqhw} is within its standard error of {points}"
    return [
        metric,
        f"seqhw {choice.seqhw}",
        show(choice.metric, choice.value, choice.error),
        "–" if choice.gflops is None else f"{choice.gflops:.3g} GFLOPs",
        "–" if choice.ms is None else f"{choice.ms:.3g} ms",
        rule,
    ]


def sentence(choice: Choice) -> str:
    """Return a choice as one line of text: metric, length, value, costs, rule and the best length."""
    metric, length, *costs, rule = choice_cells(choice)
    known = ", ".join(text for text in costs if text != "–")
    return f"{metric}: {length} ({known}), {rule}" if known else f"{metric}: {rule}"


def _choice(curve: Curve, chosen: Row | None, rule: str, rival: Row | None = None) -> Choice:
    """Return a choice. rival: the better row from which the chosen one differs by noise, if there is one."""
    first, best = curve.rows[0], _best(curve.rows)
    metric = primary_metric(first.metrics)
    assert best.seqhw is not None, "a curve has lengths"
    whole = (first.dataset, first.task, first.model, first.pretrained, metric, rule, best.seqhw, best.metrics[metric])
    if chosen is None:
        return Choice(*whole, width=first.width, label=first.label)
    return Choice(
        *whole,
        seqhw=chosen.seqhw,
        value=chosen.metrics[metric],
        gflops=chosen.gflops,
        ms=_ms(chosen),
        width=first.width,
        label=first.label,
        error=chosen.error(metric),
        rival_seqhw=None if rival is None else rival.seqhw,
        noise=None if rival is None else curve.noise(rival, chosen),
    )


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
    label: str | None = None  # as in Row


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
