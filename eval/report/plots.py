"""Pictures: metrics against the sequence length, for one run and for several runs in one frame.

The axis is log2 of the tokens an image becomes, because attention's cost and a token's worth both change by factors, not by
steps; each length is marked with its tokens and its patch size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .table import Row, TaskInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: told apart by any eyes
MARKERS = "osD^vP"
INK = "#333333"
METRIC_NAMES = {
    "image_retrieval_recall": "text → image",
    "text_retrieval_recall": "image → text",
    "acc": "zero-shot classification",
    "mean_per_class_recall": "mean per class recall",
}
_STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def plot_task(rows: Sequence[Row], task: TaskInfo) -> Figure:
    """One run's metrics of one task, chance dotted; retrieval's two directions side by side."""
    groups: dict[str, list[str]] = {}
    for name in rows[0].metrics:
        family = name.partition("@")[0] if "@" in name else "accuracy"
        groups.setdefault(family, []).append(name)
    figure, axes = _figure(len(groups))
    for axis, (family, names) in zip(axes, groups.items(), strict=True):
        for i, name in enumerate(names):
            _curve(axis, rows, name, COLOURS[i], MARKERS[i], _legend_name(name))
            _chance(axis, task.chance[name], COLOURS[i], "")
        axis.plot([], [], ":", color=INK, linewidth=1.2, label="chance")
        _finish(axis, rows, METRIC_NAMES.get(family, METRIC_NAMES["acc"]))
        axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.24), ncols=4, columnspacing=1.2, handlelength=1.8)
    axes[0].set_ylabel("recall" if len(groups) > 1 else "accuracy")
    figure.suptitle(f"{task.dataset} · {rows[0].n} images", x=0.01, ha="left", weight="bold")
    return figure


def plot_runs(
    runs: Mapping[str, Sequence[Row]], metric: str, *, chance: float | None, own: Mapping[str, Sequence[int]]
) -> Figure:
    """Several runs' curves of one metric in one frame.

    runs: label -> rows of one task. chance: in 0..1. own: label -> the seqhw a fixed model was trained at, starred.
    """
    figure, (axis,) = _figure(1)
    everything = [row for rows in runs.values() for row in rows]
    for i, (label, rows) in enumerate(runs.items()):
        colour = COLOURS[i % len(COLOURS)]
        _curve(axis, rows, metric, colour, MARKERS[i % len(MARKERS)], label)
        home = [row for row in rows if row.seqhw in own.get(label, ())]
        if home:
            style: dict[str, Any] = {"color": colour, "markersize": 16, "markeredgecolor": "white", "markeredgewidth": 1.2}
            axis.plot([r.seq_len or 0 for r in home], [r.metrics[metric] for r in home], "*", zorder=5, **style)
            axis.plot([], [], "*", color=colour, markersize=11, label="its training length")
    if chance is not None:
        _chance(axis, chance, INK, "chance")
    _finish(axis, everything, "")
    first = everything[0]
    axis.set_ylabel(f"{_direction(metric)}{_legend_name(metric)}")
    axis.set_title(f"{first.dataset} · {first.n} images", loc="left", weight="bold", pad=10)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    return figure


def save(figure: Figure, path: Path) -> bytes:
    """Write the PNG (or what the name's ending says) and return its bytes."""
    figure.savefig(path, dpi=150, facecolor="white")
    return path.read_bytes()


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    """Panels in a row, without pyplot: no global state, no display."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(1.5 + 5.6 * panels, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, panels, sharey=True, squeeze=False)
    return figure, list(axes[0])


def _curve(axis: Axes, rows: Sequence[Row], metric: str, colour: str, marker: str, label: str) -> None:
    points = sorted((row.seq_len or 0, row.metrics[metric]) for row in rows)
    lengths, values = zip(*points, strict=True)
    axis.plot(lengths, values, marker=marker, color=colour, linewidth=2, markersize=5.5, label=label, clip_on=False, zorder=3)


def _chance(axis: Axes, level: float, colour: str, label: str) -> None:
    axis.axhline(level, linestyle=":", color=colour, linewidth=1.2, zorder=1, label=label or "_nolegend_")


def _finish(axis: Axes, rows: Sequence[Row], title: str) -> None:
    """Axes: log2 tokens below, with patch sizes under them where a label finds room; percent from 0 upwards."""
    from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

    axis.set_xscale("log", base=2)
    ticks = {row.seq_len: row for row in rows if row.seq_len}
    lengths = sorted(ticks)
    axis.set_xticks(lengths, _tick_labels([ticks[length] for length in lengths]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("tokens an image (patch size in pixels below)")
    axis.set_ylim(bottom=0, top=1.05 * axis.get_ylim()[1])  # air for the star of plot_runs
    axis.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))  # whole percents, as the labels are
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    if title:
        axis.set_title(title, loc="left", fontsize=10)


def _tick_labels(rows: Sequence[Row]) -> list[str]:
    """Tokens and patch size of each length; empty where the label would run into the one before it."""
    labels: list[str] = []
    span = (rows[-1].seq_len or 1) / (rows[0].seq_len or 1)
    last = 0.0
    for row in rows:
        length = float(row.seq_len or 1)
        crowded = bool(last) and length / last < max(1.0, span) ** 0.055
        patch = "×".join(map(str, row.patch_size)) if isinstance(row.patch_size, list) else str(row.patch_size)
        labels.append("" if crowded else f"{row.seq_len}\n{patch}")
        last = last if crowded else length
    return labels


def _legend_name(metric: str) -> str:
    """`recall@5`, `accuracy@1`, `mean per class recall`."""
    if "@" in metric:
        return f"recall@{metric.partition('@')[2]}"
    return METRIC_NAMES.get(metric, metric.replace("acc", "accuracy@"))


def _direction(metric: str) -> str:
    """The retrieval direction that a y axis must name; empty for accuracies."""
    family = metric.partition("@")[0]
    return f"{METRIC_NAMES[family]} " if "@" in metric else ""
