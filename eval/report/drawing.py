"""The building blocks of all plots: panels, curves, the chance line, and axes of tokens or GFLOPs.

Both axes are logarithmic, because the cost of attention and the value of a token change by factors, not by steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from flexiclip_eval.report.table import brief
from flexiclip_eval.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Against = Literal["tokens", "gflops"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito, safe for colour-blind readers
MARKERS = "osD^vP"
INK = "#333333"
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


def frames(panels: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with `panels` panels in a row that share the axis of values, and the panels."""
    figure, axes = grid(1, panels, (1.5 + 5.6 * panels, 4.2), sharey=True)
    return figure, axes[0]


def grid(rows: int, columns: int, size: tuple[float, float], *, sharey: bool = False) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of `size` inches with rows of panels, and the panels.

    pyplot is not used, because it keeps global state and may need a display.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, sharey=sharey, squeeze=False)
    return figure, [list(row) for row in axes]


def look(number: int) -> tuple[str, str]:
    """Return (colour, marker) of the curve of this number."""
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def place(row: Row, against: Against) -> float | None:
    """Return the position of a row on the axis: its tokens or its GFLOPs; None if it does not have them."""
    return row.seq_len if against == "tokens" else row.gflops


def curve(axis: Axes, rows: Sequence[Row], metric: str, against: Against, number: int, label: str) -> None:
    """Draw a metric of one model as a curve. A row without a position on the axis becomes a dashed line across the panel."""
    colour, marker = look(number)
    label = brief(label)
    points = sorted((x, row.metrics[metric]) for row in rows if (x := place(row, against)) is not None)
    if points:
        xs, values = zip(*points, strict=True)
        axis.plot(xs, values, marker=marker, color=colour, linewidth=2, markersize=5.5, label=label, clip_on=False, zorder=3)
    for row in rows:
        if place(row, against) is None:
            axis.axhline(row.metrics[metric], linestyle="--", color=colour, linewidth=1.5, zorder=2, label=label)


def chance_line(axis: Axes, level: float, colour: str = INK) -> None:
    """Draw a dotted line at the chance level."""
    axis.axhline(level, linestyle=":", color=colour, linewidth=1.2, zorder=1)


def finish(axis: Axes, rows: Sequence[Row], against: Against, title: str = "") -> None:
    """Set up the axes: below, a log axis of tokens (with patch sizes, if a label has room) or GFLOPs; left, percents from 0."""
    from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

    axis.set_xscale("log", base=2 if against == "tokens" else 10)
    if against == "tokens":
        ticks = {row.seq_len: row for row in rows if row.seq_len}
        lengths = sorted(ticks)
        axis.set_xticks(lengths, _tick_labels([ticks[length] for length in lengths]))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("tokens an image (patch size in pixels below)")
    else:
        gflops_axis(axis)
    axis.set_ylim(bottom=0, top=1.05 * axis.get_ylim()[1])  # room for the star at a training length
    axis.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))  # whole percents, like the labels
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    if title:
        axis.set_title(title, loc="left", fontsize=10)


def gflops_axis(axis: Axes) -> None:
    """Make the x axis a log axis of GFLOPs, with its label."""
    log_axis(axis)
    axis.set_xlabel("GFLOPs an image")


def log_axis(axis: Axes) -> None:
    """Make the x axis a log axis with plain numbers at 1, 2 and 5; only at powers of 10 if the range is wide."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if high / low < 300 else (1,), numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def legend(axis: Axes, columns: int) -> None:
    """Put a legend below the panel, with the chance line as its last entry."""
    axis.plot([], [], ":", color=INK, linewidth=1.2, label="chance")
    style: Any = {"frameon": False, "loc": "upper left", "borderaxespad": 0, "columnspacing": 1.2, "handlelength": 1.8}
    axis.legend(bbox_to_anchor=(0, -0.3), ncols=columns, **style)


def _tick_labels(rows: Sequence[Row]) -> list[str]:
    """Return the tokens and patch size of each length as a label; empty if the label would overlap the one before it."""
    labels: list[str] = []
    span = (rows[-1].seq_len or 1) / (rows[0].seq_len or 1) if rows else 1.0
    last = 0.0
    for row in rows:
        length = float(row.seq_len or 1)
        crowded = bool(last) and length / last < max(1.0, span) ** 0.055
        patch = "×".join(map(str, row.patch_size)) if isinstance(row.patch_size, list) else str(row.patch_size or "")
        labels.append("" if crowded else f"{row.seq_len}\n{patch}")
        last = last if crowded else length
    return labels
