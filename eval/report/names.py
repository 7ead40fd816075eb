"""How metrics are called and written (which are shares, which are better when lower), and how a model's name is cut."""

from __future__ import annotations

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
"""metric, less its @k -> (heading of a column, words)."""


def brief(label: str, room: int = 48) -> str:
    """A label of at most `room` characters: the end of a long one, where folders differ."""
    return label if len(label) <= room else "…" + label[1 - room :]


def short_name(metric: str) -> str:
    """A metric's name as a column's heading: which side is asked for which."""
    return _name(metric, 0)


def long_name(metric: str) -> str:
    """A metric in words, for an axis or a menu."""
    return _name(metric, 1)


def family_of(metric: str) -> str:
    """What may share a picture's frame: a retrieval direction at its several k, or all accuracies."""
    return metric.partition("@")[0] if "@" in metric else "accuracy"


def is_share(metric: str) -> bool:
    """Whether the metric lies in 0..1 and is written in percent; a rank is neither."""
    return not metric.endswith("_rank")


def best_of(metric: str, values: list[float]) -> float:
    """The best of the values: the highest share, the lowest rank."""
    return max(values) if is_share(metric) else min(values)


def show(metric: str, value: float | None) -> str:
    """The value as a text: percent, or a rank; a dash for none."""
    if value is None:
        return "–"
    return f"{value:.1%}" if is_share(metric) else f"{value:,.1f}"


def _name(metric: str, column: int) -> str:
    family, at, k = metric.partition("@")
    return _FAMILIES[family][column] + at + k if family in _FAMILIES else metric.replace("_", " ")
