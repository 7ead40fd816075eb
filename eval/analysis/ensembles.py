"""Ensembles over lengths: are two passes at two lengths better than one pass of the same cost (FlexiViT, appendix)?

A model runs at several lengths. Then its embeddings are averaged, or its similarities with the texts, which equals the mean
embedding before it is normalised. The cost of an ensemble is the sum of the costs of its lengths. It is compared with the model
at ONE length of that cost, which is read from the curve of the single lengths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

from flexiclip_eval.analysis.subject import Finding, Subject, Table
from flexiclip_eval.data.labels import open_splits
from flexiclip_eval.embeddings.embed import unit_rows
from flexiclip_eval.report.drawing import curve, gflops_axis, grid, legend, percent_axis
from flexiclip_eval.rows import long_name, primary_metric, show
from flexiclip_eval.score import EmbeddedSplit, prepare_tasks
from flexiclip_eval.tasks.base import Prepared
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LISTED = 12  # ensembles in the table; analysis.json has all of them
_VALUES = ("mean of embeddings", "mean of similarities", "one length at equal cost", "gain of embeddings, points")


@dataclass(frozen=True)
class Ensemble:
    """Several lengths on one task, measured by the primary metric of the task."""

    lengths: tuple[int, ...]
    gflops: float  # of one image at all of them
    embeddings: float  # the metric of the mean unit embedding, normalised again
    similarities: float  # the metric of the mean of the similarities
    single: float  # the metric of one length at equal cost

    @property
    def gain(self) -> float:
        """How much better the mean of the embeddings is than one length at equal cost."""
        return self.embeddings - self.single


@dataclass(frozen=True)
class TaskEnsembles:
    """All ensembles of one task, and its single lengths as {length: value}."""

    dataset: str
    task: str
    metric: str
    images: int
    singles: dict[int, float]
    ensembles: list[Ensemble]

    @property
    def mean_gain(self) -> float:
        """The mean over all ensembles. Unlike the gain of the best one, it is not chosen by luck."""
        return sum(each.gain for each in self.ensembles) / len(self.ensembles)

    def to_dict(self) -> dict[str, object]:
        """Return plain data with the gains."""
        ensembles = [{**asdict(each), "gain": each.gain} for each in self.ensembles]
        return {**asdict(self), "mean_gain": self.mean_gain, "ensembles": ensembles}


def mean_rows(rows: Mapping[int, Tensor], lengths: Sequence[int]) -> Tensor:
    """Return the mean over lengths of unit rows [N, D]. Its products with unit rows of texts are the means of the products."""
    return sum((rows[length] for length in lengths[1:]), rows[lengths[0]]) / len(lengths)


def at_cost(curve: Sequence[tuple[float, float]], gflops: float) -> float:
    """Return the value of one length that costs `gflops`.

    curve: (gflops, value) of the single lengths in ascending order of cost. Between two lengths the value is linear in the
    logarithm of the cost. Beyond an end of the curve it is the value of that end.
    """
    if gflops >= curve[-1][0]:
        return curve[-1][1]
    for (low, below), (high, above) in pairwise(curve):
        if gflops < high:
            part = max(0.0, math.log(gflops / low) / math.log(high / low))
            return below + part * (above - below)
    raise AssertionError("the last cost is above")


def subsets(lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """Return every pair of lengths, and the shortest three, four and so on up to all of them."""
    return [*combinations(lengths, 2), *(tuple(lengths[:n]) for n in range(3, len(lengths) + 1))]


def task_ensembles(subject: Subject, prepared: Prepared, images: EmbeddedSplit, taught: EmbeddedSplit | None) -> TaskEnsembles:
    """Score one task of a data set at every length and in every ensemble."""
    device = subject.encoding.device
    rows, trained = (
        {length: split.at[length].rows.to(device) for length in subject.lengths} if split else {} for split in (images, taught)
    )

    def measure(lengths: Sequence[int], unit: bool) -> dict[str, float]:
        z = mean_rows(rows, lengths)
        t = mean_rows(trained, lengths) if trained else z[:0]
        return prepared.measure(*(map(unit_rows, (z, t)) if unit else (z, t))).metrics

    alone = {length: measure([length], unit=False) for length in subject.lengths}
    metric = primary_metric(alone[subject.lengths[0]])
    singles = {length: values[metric] for length, values in alone.items()}
    curve = [(subject.gflops(length), singles[length]) for length in subject.lengths]
    ensembles = []
    for lengths in subsets(subject.lengths):
        cost = sum(subject.gflops(length) for length in lengths)
        embeddings, similarities = (measure(lengths, unit)[metric] for unit in (True, False))
        ensembles.append(Ensemble(lengths, cost, embeddings, similarities, at_cost(curve, cost)))
    return TaskEnsembles(prepared.info.dataset, prepared.info.task, metric, len(images.records), singles, ensembles)


def analyze(subject: Subject) -> Finding:
    """Score the ensembles on every task of every data set."""
    found = []
    for config in subject.datasets:
        splits = open_splits(config, subject.loaded.transform, workers=subject.options.workers, cache_bytes=0)
        for prepared, images, taught in prepare_tasks(subject.encoding, splits):
            found.append(task_ensembles(subject, prepared, images, taught))
    return Finding(
        title="Ensembles over lengths",
        method="The mean of embeddings, or of similarities, over several lengths, against one length at equal GFLOPs of the "
        "image tower. Where an ensemble costs more than the longest length, that length is what it is compared with.",
        sentence=" ".join(_sentence(each) for each in found),
        numbers={
            "gflops": {str(length): subject.gflops(length) for length in subject.lengths},
            "tasks": [each.to_dict() for each in found],
        },
        table=Table(("task", "lengths", "GFLOPs", *_VALUES), [line for each in found for line in _lines(each)]),
        figures={
            f"ensembles_{i}": (_draw(subject, each), f"{each.dataset}: {long_name(each.metric)}.") for i, each in enumerate(found)
        },
    )


def _draw(subject: Subject, each: TaskEnsembles) -> Figure:
    """Draw the metric against GFLOPs: the curve of the single lengths, and one point per ensemble."""
    figure, ((axis,),) = grid(1, 1, (8.4, 4.4))
    curve(axis, [(subject.gflops(length), value) for length, value in each.singles.items()], 0, "one length")
    several = [(e.gflops, e.embeddings) for e in each.ensembles]
    curve(axis, several, 1, "mean over lengths", marker="D", linestyle="", markersize=4, alpha=0.7, zorder=2)
    gflops_axis(axis)
    percent_axis(axis)
    axis.set_ylabel(long_name(each.metric))
    axis.set_title(f"{each.dataset} · {each.images} images", loc="left", weight="bold", pad=10)
    legend(axis)
    return figure


def _sentence(each: TaskEnsembles) -> str:
    better = sum(e.gain > 0 for e in each.ensembles)
    best = max(each.ensembles, key=lambda e: e.gain)
    noise = math.sqrt(max(0.0, best.single * (1 - best.single)) / each.images)  # the standard error of a share
    return (
        f"{each.dataset}, {long_name(each.metric)}: ensembles are {100 * each.mean_gain:+.1f} points from one length at equal "
        f"cost on average, {better} of {len(each.ensembles)} above it, the best ({'+'.join(map(str, best.lengths))}) by "
        f"{100 * best.gain:+.1f}; a value has a standard error of {100 * noise:.1f} points."
    )


def _lines(each: TaskEnsembles) -> list[tuple[str, ...]]:
    ranked = sorted(each.ensembles, key=lambda e: -e.gain)[:LISTED]
    return [
        (
            f"{each.dataset} {each.metric}",
            "+".join(map(str, e.lengths)),
            f"{e.gflops:.3g}",
            *(show(each.metric, value) for value in (e.embeddings, e.similarities, e.single)),
            f"{100 * e.gain:+.1f}",
        )
        for e in ranked
    ]
