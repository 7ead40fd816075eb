"""Plots metrics against the sequence length or GFLOPs, for one model or several, and plots cascades and Pareto fronts."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flexiclip_eval.report.drawing import (
    INK,
    Against,
    chance_line,
    curve,
    finish,
    frames,
    legend,
    look,
    place,
)
from flexiclip_eval.report.table import brief, family_of, is_share, long_name
from flexiclip_eval.rows import Row, TaskInfo
from flexiclip_eval.tradeoffs import CascadeCurve, Front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Runs = Mapping[str, Sequence[Row]]
"""{label of a model: its rows of one task}."""


def plot_task(runs: Runs, task: TaskInfo, against: Against = "tokens") -> Figure | None:
    """Plot the metrics of a task, with one panel per family of metrics.

    For one model all metrics are drawn; for several models, one metric of each family (recall@5, acc1). Returns None if no row
    has a place on the axis, or if no metric is a share.
    """
    everything = [row for rows in runs.values() for row in rows]
    families: dict[str, list[str]] = {}
    for name in everything[0].metrics:
        if is_share(name):
            families.setdefault(family_of(name), []).append(name)
    if not families or all(place(row, against) is None for row in everything):
        return None
    figure, axes = frames(len(families))
    for axis, (family, names) in zip(axes, families.items(), strict=True):
        if len(runs) == 1:
            _metrics(axis, everything, names, task, against)
            finish(axis, everything, against, "" if family == "accuracy" else long_name(family))
        else:
            metric = next((name for name in names if name.endswith("@5")), names[0])
            _models(axis, runs, metric, task.chance.get(metric), {}, against)
            finish(axis, everything, against, long_name(metric))
        legend(axis, 4 if len(runs) == 1 else 1)
    axes[0].set_ylabel("accuracy" if set(families) == {"accuracy"} else "recall")
    figure.suptitle(f"{task.dataset} · {everything[0].n} images", x=0.01, ha="left", weight="bold")
    return figure


def plot_runs(
    runs: Runs, metric: str, *, chance: float | None, own: Mapping[str, Sequence[int]], against: Against = "tokens"
) -> Figure:
    """Plot one metric of several runs in one panel.

    chance: the chance level in 0..1; None: not drawn. own: {label: the seqhw at which a fixed model was trained}, marked with a
    star.
    """
    figure, (axis,) = frames(1)
    everything = [row for rows in runs.values() for row in rows]
    _models(axis, runs, metric, chance, own, against)
    finish(axis, everything, against)
    first = everything[0]
    axis.set_ylabel(long_name(metric))
    axis.set_title(f"{first.dataset} · {first.n} images", loc="left", weight="bold", pad=10)
    if chance is not None:
        axis.plot([], [], ":", color=INK, linewidth=1.2, label="chance")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return figure


def plot_cascades(cascades: Mapping[str, CascadeCurve], runs: Runs, metric: str) -> Figure | None:
    """Plot recall against GFLOPs per gallery image: the cascade of each model, together with its single lengths.

    cascades: {label: its cascade}. Returns None if the costs of all cascades are unknown.
    """
    known = {label: [p for p in each.points if p.gflops_per_image is not None] for label, each in cascades.items()}
    if not any(known.values()):
        return None
    figure, (axis,) = frames(1)
    for i, (label, points) in enumerate(known.items()):
        colour, marker = look(i)
        rows = [row for row in runs[label] if row.gflops is not None]
        curve(axis, rows, metric, "gflops", i, label)
        xs = [point.gflops_per_image or 0 for point in points]
        name = f"{brief(label)}: seqhw {cascades[label].short}, the first K again at {cascades[label].long}"
        style: Any = {"marker": marker, "markerfacecolor": "white", "markersize": 5.5, "linestyle": "--", "linewidth": 1.6}
        axis.plot(xs, [point.metrics[metric] for point in points], color=colour, label=name, zorder=4, **style)
        for x, point in zip(xs[1:-1], points[1:-1], strict=True):
            at: Any = {"textcoords": "offset points", "xytext": (0, 7), "ha": "center", "fontsize": 7}
            axis.annotate(f"K={point.shortlist}", (x, point.metrics[metric]), color=colour, **at)
    finish(axis, [row for rows in runs.values() for row in rows], "gflops")
    axis.set_xlabel("GFLOPs a gallery image, all captions asked once")
    axis.set_ylabel(long_name(metric))
    axis.set_title(f"{next(iter(cascades.values())).dataset} · cascade", loc="left", weight="bold", pad=10)
    legend(axis, 1)
    return figure


def plot_front(front: Front, runs: Runs) -> Figure:
    """Plot a metric against GFLOPs, with one curve per model and width. The points that are not on the front are hollow."""
    figure, (axis,) = frames(1)
    best = {(p.model, p.pretrained, p.width, p.seqhw) for p in front.points}
    for i, (label, rows) in enumerate(runs.items()):
        known = [row for row in rows if row.width is not None and row.gflops is not None]
        colour, marker = look(i)
        curve(axis, known, front.metric, "gflops", i, label)
        beaten = [row for row in known if (row.model, row.pretrained, row.width, row.seqhw) not in best]
        style: Any = {"color": colour, "markerfacecolor": "white", "markersize": 5.5, "zorder": 4, "clip_on": False}
        axis.plot([row.gflops or 0 for row in beaten], [row.metrics[front.metric] for row in beaten], marker, **style)
    finish(axis, [row for rows in runs.values() for row in rows], "gflops")
    axis.set_ylabel(long_name(front.metric))
    title = f"{front.dataset} · length and width\nfilled: nothing is as good for fewer GFLOPs and columns"
    axis.set_title(title, loc="left", fontsize=10, pad=10)
    legend(axis, 1)
    return figure


def drawn(figure: Figure, kind: str = "png", dpi: int = 150) -> bytes:
    """Return a figure as the bytes of a file. kind: a format of matplotlib, such as png, svg or pdf."""
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=dpi, facecolor="white")
    return data.getvalue()


def _metrics(axis: Axes, rows: Sequence[Row], names: Sequence[str], task: TaskInfo, against: Against) -> None:
    """Draw one curve per metric of one model, each with its chance level."""
    for i, name in enumerate(names):
        curve(axis, rows, name, against, i, f"recall@{name.partition('@')[2]}" if "@" in name else long_name(name))
        if name in task.chance:
            chance_line(axis, task.chance[name], look(i)[0])


def _models(
    axis: Axes, runs: Runs, metric: str, chance: float | None, own: Mapping[str, Sequence[int]], against: Against
) -> None:
    """Draw one curve per model, with a star at the length at which a fixed model was trained."""
    for i, (label, rows) in enumerate(runs.items()):
        curve(axis, rows, metric, against, i, label)
        home = [row for row in rows if row.seqhw in own.get(label, ()) and place(row, against) is not None]
        if home:
            colour = look(i)[0]
            style: dict[str, Any] = {"color": colour, "markersize": 16, "markeredgecolor": "white", "markeredgewidth": 1.2}
            axis.plot([place(r, against) or 0 for r in home], [r.metrics[metric] for r in home], "*", zorder=5, **style)
            axis.plot([], [], "*", color=colour, markersize=11, label="its training length")
    if chance is not None:
        chance_line(axis, chance)
