"""A row of results.json, the facts about its task, and the names of its metrics.

A row is the JSON object that CLIP_benchmark writes, with the length and its cost added at the top level. The second half defines
how metrics are named and written: which are shares, and which one represents a task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

Side = int | list[int]
"""A size in pixels: the side of a square, or [height, width]."""


@dataclass(frozen=True)
class Row:
    """The scores of one model on one task of a data set at one length.

    `seqhw` and `seq_len` are None for a model that has one fixed length and does not state it.
    """

    dataset: str
    """The name of the data set, followed by that of the task if it has one."""
    model: str
    """NAME of open_clip:NAME/PRETRAINED, else the name of the architecture."""
    pretrained: str
    """PRETRAINED of open_clip:NAME/PRETRAINED, else the source of the model."""
    task: str
    """zeroshot_retrieval, zeroshot_classification, classification, image_caption_selection or linear_probe."""
    metrics: dict[str, float]
    """Shares in 0..1, and median ranks from 1, with CLIP_benchmark's names for the metrics that it has."""
    language: str
    """The language of the captions and prompts."""
    n: int
    """The number of images that were scored, without those that could not be read."""
    seqhw: int | None
    """The grid side of the length."""
    seq_len: int | None
    """The number of tokens, seqhw^2."""
    patch_size: Side | None
    """Pixels; None if it is unknown or does not apply to the model."""
    image_size: Side | None
    """Pixels; None if it is unknown."""
    gflops: float | None
    """GFLOPs of the image tower for one image, where a multiply-add counts 2; None if they are unknown."""
    images_per_s: float | None
    """Speed of the image tower over all ranks, without decoding and warm-up; None if there are too few images to measure it."""
    width: int | None = None
    """How many columns of the embeddings `--widths` compared; None (and no key in the JSON): all."""
    standard_errors: dict[str, float] | None = None
    """The standard errors of those metrics for which one is known, in the same unit; None (and no key in the JSON): of none."""
    label: str | None = None
    """The name that the user gave to the model (LABEL=MODEL); None (and no key in the JSON): none."""

    def error(self, metric: str) -> float | None:
        """Return the standard error of a metric; None if it is not known."""
        return (self.standard_errors or {}).get(metric)


@dataclass(frozen=True)
class TaskInfo:
    """Facts about a task that are needed to judge its rows: the chance level of each metric, and the size of the problem."""

    dataset: str
    task: str
    chance: dict[str, float]  # the metrics of a model that knows nothing
    classes: tuple[str, ...] = ()
    largest_class: float | None = None  # share of the most frequent class, which is the acc1 of always naming that class
    captions: int | None = None  # number of captions; equal texts count once if the task merges them


class Example(TypedDict):
    """What a caption found. Images are given by their positions among those that could be read."""

    caption: str
    positives: list[int]  # the images that answer the caption
    ranked: list[int]  # the best images, best first
    rank: int  # of the best positive, from 1


class Mistake(TypedDict):
    """An image that got a wrong class. Classes are given by their numbers, the image by its position, as in Example."""

    image: int
    label: int  # the right class
    named: int  # the class that the model named
    rank: int  # of the right class, from 1


class Details(TypedDict, total=False):
    """What a task found out in addition to its metrics, as plain data for details.json and the page."""

    per_class: dict[str, float]  # recall or average precision of each class
    found: list[Example]
    confusion: list[tuple[int, int, int]]  # (right class, named class, images)
    mistakes: list[Mistake]


PRIMARY = ("acc1", "mean_average_precision", "image_retrieval_recall@5", "acc", "lp_acc1")
"""The metric that represents a task is the first of these that its rows have."""

_FAMILIES = {
    "image_retrieval_recall": ("text→image R", "text → image recall"),
    "text_retrieval_recall": ("image→text R", "image → text recall"),
    "image_retrieval_median_rank": ("text→image rank", "text → image median rank"),
    "text_retrieval_median_rank": ("image→text rank", "image → text median rank"),
    "mean_per_class_recall": ("mean/class", "mean per class recall"),
    "mean_average_precision": ("mAP", "mean average precision"),
    "acc": ("acc", "accuracy"),
    "acc1": ("acc1", "accuracy@1"),
    "acc5": ("acc5", "accuracy@5"),
    "lp_acc1": ("probe acc1", "linear probe accuracy@1"),
    "lp_acc5": ("probe acc5", "linear probe accuracy@5"),
    "lp_mean_per_class_recall": ("probe mean/class", "linear probe mean per class recall"),
}
"""{metric without its @k: (heading of its column, its name in words)}."""


def primary_metric(metrics: Mapping[str, float]) -> str:
    """Return the metric that represents a task, from the metrics of a row: the first of PRIMARY, else the first metric."""
    return next((name for name in PRIMARY if name in metrics), next(iter(metrics)))


def short_name(metric: str) -> str:
    """Return the heading of a metric's column, for example text→image R@5."""
    return _name(metric, 0)


def long_name(metric: str) -> str:
    """Return the name of a metric in words, for an axis or a menu."""
    return _name(metric, 1)


def _name(metric: str, column: int) -> str:
    family, at, k = metric.partition("@")
    return _FAMILIES[family][column] + at + k if family in _FAMILIES else metric.replace("_", " ")


def family_of(metric: str) -> str:
    """Return the family of a metric, which shares a panel of a plot: the recalls of one direction at all k, or all accuracies."""
    return metric.partition("@")[0] if "@" in metric else "accuracy"


def is_share(metric: str) -> bool:
    """Return whether a metric is a share in 0..1, which is written in percent. All metrics except ranks are shares."""
    return not metric.endswith("_rank")


def best_of(metric: str, values: list[float]) -> float:
    """Return the best of the values of a metric: the highest share, or the lowest rank."""
    return max(values) if is_share(metric) else min(values)


def show(metric: str, value: float | None, error: float | None = None) -> str:
    """Return a value as text: a share in percent, a rank as a number, None as a dash. error: its standard error, if known."""
    if value is None:
        return "–"
    text = f"{value:.1%}" if is_share(metric) else f"{value:,.1f}"
    return text if error is None else f"{text} ±{100 * error if is_share(metric) else error:.1f}"


def binomial_error(share: float, count: int) -> float:
    """Return the standard error of a share of `count` independent yes or no answers: sqrt(p (1 - p) / n)."""
    return math.sqrt(max(0.0, share * (1 - share)) / count)


def pixels(side: Side | None) -> str:
    """Return a size as text, such as 60 or 48×96; an empty text if it is unknown."""
    return "×".join(map(str, side)) if isinstance(side, list) else str(side or "")
