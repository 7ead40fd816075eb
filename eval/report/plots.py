"""Plots metrics against the sequence length or GFLOPs, for one model or several, and plots cascades and Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from flexiclip_eval.report.drawing import (
    INK,
    chance_line,
    curve,
    error_bars,
    gflops_axis,
    grid,
    legend,
    look,
    percent_axis,
    token_axis,
)
from flexiclip_eval.report.table import brief, label_of, short_labels
from flexiclip_eval.rows import Row, TaskInfo, family_of, is_share, long_name, pixels
from flexiclip_eval.tradeoffs import CascadeCurve, Front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Against = Literal["tokens", "gflops"]

Runs = Mapping[str, Sequence[Row]]
"""{label of a model: its rows of one task}."""

_ONE_PANEL = (7.1, 4.2)  # inches
LABEL_APART = 0.13  # the logarithm of the GFLOPs between two labels of a cascade, so that they do not overlap


def plot_task(runs: Runs, task: TaskInfo, against: Against = "tokens") -> Figure | None:
    """Plot the metrics of a task, with one panel per family of metrics.

    For one model all metrics are drawn; for several models, one metric of each family (recall@5, acc1). Returns None if no row
    has a place on the axis, or if no metric is a share.
    """
    everything = [row for rows in runs.values() for row in rows]
    families: dict[str, list[str]] = {}
    for name in filter(is_share, everything[0].metrics):
        families.setdefault(family_of(name), []).append(name)
    if not families or all(_place(row, against) is None for row in everything):
        return None
    figure, (axes,) = grid(1, len(families), (1.5 + 5.6 * len(families), 4.2), sharey=True)
    for axis, (family, names) in zip(axes, families.items(), strict=True):
        shown = names
        if len(runs) == 1:
            for i, name in enumerate(names):
                label = f"recall@{name.partition('@')[2]}" if "@" in name else long_name(name)
                _rows_curve(axis, everything, name, against, i, label)
                chance_line(axis, task.chance.get(name), look(i)[0])
            _finish(axis, runs, against, "" if family == "accuracy" else long_name(family))
        else:
            metric = next((name for name in names if name.endswith("@5")), names[0])
            shown = [metric]
            short = short_labels(list(runs))
            for i, (label, rows) in enumerate(runs.items()):
                _rows_curve(axis, rows, metric, against, i, short[label])
            chance_line(axis, task.chance.get(metric))
            _finish(axis, runs, against, long_name(metric))
        known = sum(task.chance.get(name) is not None for name in shown)
        _legend_below(axis, 4 if len(runs) == 1 else 1, chances=known)
    axes[0].set_ylabel("accuracy" if set(families) == {"accuracy"} else "recall")
    figure.suptitle(f"{task.dataset} · {everything[0].n} images", x=0.01, ha="left", weight="bold")
    return figure


def plot_runs(runs: Runs, metric: str, *, chance: float | None, own: Mapping[str, Sequence[int]]) -> Figure:
    """Plot one metric of several runs against the tokens.

    chance: the chance level in 0..1; None: not drawn. own: {label: the seqhw at which a fixed model was trained}, marked with a
    star.
    """
    figure, ((axis,),) = grid(1, 1, _ONE_PANEL)
    short = short_labels(list(runs))
    for i, (label, rows) in enumerate(runs.items()):
        _rows_curve(axis, rows, metric, "tokens", i, short[label])
        home = [(row.seq_len, row.metrics[metric]) for row in rows if row.seqhw in own.get(label, ()) and row.seq_len]
        if home:
            curve(axis, home, i, marker="*", linestyle="", markersize=16, markeredgecolor="white", markeredgewidth=1.2, zorder=5)
            axis.plot([], [], "*", color=look(i)[0], markersize=11, label="its training length")
    chance_line(axis, chance)
    _finish(axis, runs, "tokens")
    first = next(iter(runs.values()))[0]
    axis.set_ylabel(long_name(metric))
    axis.set_title(f"{first.dataset} · {first.n} images", loc="left", weight="bold", pad=10)
    if chance is not None:
        axis.plot([], [], ":", color=INK, linewidth=1.2, label="chance")
    legend(axis)
    return figure


def plot_cascades(cascades: Mapping[str, CascadeCurve], runs: Runs, metric: str) -> Figure | None:
    """Plot recall against GFLOPs per gallery image: the cascade of each model, together with its single lengths.

    cascades: {label: its cascade}. Returns None if the costs of all cascades are unknown.
    """
    known = {
        label: [(p.gflops_per_image, p.metrics[metric], p.shortlist) for p in each.points if p.gflops_per_image is not None]
        for label, each in cascades.items()
    }
    if not any(known.values()):
        return None
    figure, ((axis,),) = grid(1, 1, _ONE_PANEL)
    short = short_labels(list(known))
    for i, (label, points) in enumerate(known.items()):
        _rows_curve(axis, [row for row in runs[label] if row.gflops is not None], metric, "gflops", i, short[label])
        name = f"{brief(short[label])}: seqhw {cascades[label].short}, the first K again at {cascades[label].long}"
        line = [(x, y) for x, y, _ in points]
        curve(axis, line, i, name, markerfacecolor="white", markersize=4, linestyle="--", linewidth=1.6, zorder=4)
        named = [points[-1][0]]
        for x, y, k in points[1:-1]:
            if all(abs(math.log(x / other)) > LABEL_APART for other in named):  # else it would cover another label
                named.append(x)
                axis.annotate(f"K={k}", (x, y), (0, -12), textcoords="offset points", color=look(i)[0], ha="center", fontsize=7)
    _finish(axis, runs, "gflops")
    axis.set_xlabel("GFLOPs per gallery image, all captions asked once")
    axis.set_ylabel(long_name(metric))
    axis.set_title(f"{next(iter(cascades.values())).dataset} · cascade", loc="left", weight="bold", pad=10)
    _legend_below(axis, 1)
    return figure


def plot_front(front: Front, runs: Runs) -> Figure:
    """Plot a metric against GFLOPs, with one curve per model and width. The points that are not on the front are hollow."""
    figure, ((axis,),) = grid(1, 1, _ONE_PANEL)
    best, short = {(label_of(point), point.seqhw) for point in front.points}, short_labels(list(runs))
    for i, (label, rows) in enumerate(runs.items()):
        known = [(row, row.gflops) for row in rows if row.width is not None and row.gflops is not None]
        _rows_curve(axis, [row for row, _ in known], front.metric, "gflops", i, short[label])
        beaten = [(x, r.metrics[front.metric]) for r, x in known if (label_of(r), r.seqhw) not in best]
        curve(axis, beaten, i, linestyle="", markerfacecolor="white", zorder=4)
    _finish(axis, runs, "gflops")
    axis.set_ylabel(long_name(front.metric))
    text = f"{front.dataset} · length and width\nfilled: nothing is as good for fewer GFLOPs and columns"
    axis.set_title(text, loc="left", fontsize=10, pad=10)
    _legend_below(axis, 1)
    return figure


def _place(row: Row, against: Against) -> float | None:
    """Return the position of a row on the axis: its tokens or its GFLOPs; None if it does not have them."""
    return row.seq_len if against == "tokens" else row.gflops


def _rows_curve(axis: Axes, rows: Sequence[Row], metric: str, against: Against, number: int, label: str) -> None:
    """Draw a metric of one model as a curve with bars of one standard error.

    A row without a position on the axis becomes a dashed line across the panel.
    """
    points = sorted((x, row.metrics[metric], row.error(metric) or 0.0) for row in rows if (x := _place(row, against)) is not None)
    if points:
        curve(axis, [point[:2] for point in points], number, brief(label))
        error_bars(axis, points, number)
    for row in rows:
        if _place(row, against) is None:
            axis.axhline(row.metrics[metric], linestyle="--", color=look(number)[0], linewidth=1.5, zorder=2, label=brief(label))


def _finish(axis: Axes, runs: Runs, against: Against, heading: str = "") -> None:
    """Set up the axes: below, tokens (with patch sizes, if a label has room) or GFLOPs; left, percents from 0."""
    from matplotlib.ticker import MaxNLocator

    if against == "tokens":
        patches = {row.seq_len: pixels(row.patch_size) for rows in runs.values() for row in rows if row.seq_len}
        token_axis(axis, sorted(patches), _tick_labels(patches), "tokens per image (patch size in pixels below)")
    else:
        gflops_axis(axis)
    axis.set_ylim(bottom=0, top=1.05 * axis.get_ylim()[1])  # room for the star at a training length
    axis.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))  # whole percents, like the labels
    percent_axis(axis)
    axis.set_axisbelow(True)
    if heading:
        axis.set_title(heading, loc="left", fontsize=10)


def _tick_labels(patches: Mapping[int, str]) -> list[str]:
    """Return {tokens: patch size} as labels, in ascending order; empty if the label would overlap the one before it."""
    apart = (max(patches) / min(patches)) ** 0.055
    labels, last = [], 0
    for length, patch in sorted(patches.items()):
        crowded = length < apart * last
        labels.append("" if crowded else f"{length}\n{patch}")
        last = last if crowded else length
    return labels


def _legend_below(axis: Axes, columns: int, *, chances: int = 0) -> None:
    """Put a legend below the panel, closer if its ticks have one line.

    chances: the number of lines of chance levels, for which the legend has one entry.
    """
    if chances:
        axis.plot([], [], ":", color=INK, linewidth=1.2, label="chance" if chances == 1 else "chance, in each colour")
    two_lines = any("\n" in tick.get_text() for tick in axis.get_xticklabels())
    legend(axis, (0, -0.3 if two_lines else -0.2), columns, 10)
