"""The building blocks of all plots: panels, curves, axes of tokens, GFLOPs or percents, and legends.

The axes of tokens and GFLOPs are logarithmic, because the cost of attention and the value of a token change by factors, not by
steps.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito, safe for colour-blind readers
MARKERS = "osD^vP"
INK = "#333333"


def grid(rows: int, columns: int, size: tuple[float, float], *, sharey: bool = False) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of `size` inches with rows of panels, and the panels.

    pyplot is not used, because it keeps global state and may need a display.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rc("font", size=10)
        matplotlib.rc("axes", edgecolor="#888888", labelcolor=INK)
        matplotlib.rc("axes.spines", top=False, right=False)
        for group in ("text", "xtick", "ytick"):
            matplotlib.rc(group, color=INK)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, sharey=sharey, squeeze=False)
    return figure, [list(row) for row in axes]


def drawn(figure: Figure, kind: str = "png", dpi: int = 150) -> bytes:
    """Return a figure as the bytes of a file. kind: a format of matplotlib, such as png, svg or pdf."""
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=dpi, facecolor="white")
    return data.getvalue()


def look(number: int) -> tuple[str, str]:
    """Return (colour, marker) of the curve of this number."""
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def curve(axis: Axes, points: Iterable[Sequence[float]], number: int, label: str | None = None, **style: object) -> None:
    """Draw points (x, y) as a curve with the colour and the marker of `number`. style: properties of matplotlib's Line2D."""
    colour, marker = look(number)
    plain = {"color": colour, "marker": marker, "linewidth": 2, "markersize": 5.5, "clip_on": False, "zorder": 3}
    several = list(points)
    (line,) = axis.plot([x for x, _ in several], [y for _, y in several], label=label)
    line.set(**{**plain, **style})


def error_bars(axis: Axes, points: Iterable[Sequence[float]], number: int) -> None:
    """Draw a thin vertical bar at each point (x, y, error) whose error is above 0, in the colour of `number`."""
    several = [point for point in points if point[2] > 0]
    if several:
        x, y, error = zip(*several, strict=True)
        axis.errorbar(x, y, error, fmt="none", ecolor=look(number)[0], elinewidth=1, capsize=2.5, alpha=0.55, zorder=2)


def token_axis(axis: Axes, lengths: Sequence[int], labels: Sequence[str], title: str) -> None:
    """Make the x axis a log axis of tokens, with a tick and a label for each of the lengths."""
    from matplotlib.ticker import NullLocator

    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, labels)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(title)


def gflops_axis(axis: Axes) -> None:
    """Make the x axis a log axis of GFLOPs, with its label."""
    log_axis(axis)
    axis.set_xlabel("GFLOPs per image")


def log_axis(axis: Axes) -> None:
    """Make the x axis a log axis with plain numbers at 1, 2 and 5; only at powers of 10 if the range is wide."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if high / low < 300 else (1,), numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def percent_axis(axis: Axes) -> None:
    """Make the y axis an axis of shares in percent, with a line at each tick."""
    from matplotlib.ticker import PercentFormatter

    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)


def chance_line(axis: Axes, level: float | None, colour: str = INK) -> None:
    """Draw a dotted line at the chance level, if it is known."""
    if level is not None:
        axis.axhline(level, linestyle=":", color=colour, linewidth=1.2, zorder=1)


def legend(axis: Axes, at: tuple[float, float] = (1.01, 1), columns: int = 1, size: float = 9) -> None:
    """Put a legend outside of a panel. at: its upper left corner, in shares of the panel's sides. size: of the font in points."""
    axis.legend(
        loc="upper left", bbox_to_anchor=at, ncols=columns, fontsize=size, frameon=False, borderaxespad=0, columnspacing=1.2
    )
