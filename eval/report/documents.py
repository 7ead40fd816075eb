"""Tables and plots for the Markdown pages in docs/, which the scripts that write these pages share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flexiclip_eval.report import drawing

Points = Sequence[Sequence[float]]
"""Pairs of numbers: (x, y), or (lowest, highest)."""


@dataclass(frozen=True)
class Axes:
    """The title and the axes of a plot of lines."""

    title: str
    x: str  # label of the axis
    y: str  # label of the axis
    log_x: bool = True
    log_y: bool = False
    ticks_at_points: bool = False
    """True: the x axis has a tick at the x of every point. False: its ticks are round numbers."""


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    """Return the lines of a Markdown table. The first `left` columns are left-aligned, the others right-aligned."""
    rules = ["---" if i < left else "---:" for i in range(len(columns))]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (columns, rules, *rows)]


def draw_lines(series: Mapping[str, Points], axes: Axes, path: Path, ranges: Mapping[str, Points] | None = None) -> None:
    """Draw curves into a PNG file at `path`, whose folder is made if needed.

    series: {label: (x, y) of its points}. ranges: {label: (lowest, highest) at each point}, drawn as a band around the curve.
    """
    figure, ((axis,),) = drawing.grid(1, 1, (6.4, 3.6))
    for number, (label, points) in enumerate(series.items()):
        colour, marker = drawing.look(number)
        xs = [x for x, _ in points]
        style = "-" if number < len(drawing.COLOURS) else "--"
        axis.plot(xs, [y for _, y in points], style, label=label, color=colour, marker=marker, markersize=5)
        if ranges and label in ranges:
            lowest, highest = ([pair[i] for pair in ranges[label]] for i in (0, 1))
            axis.fill_between(xs, lowest, highest, color=colour, alpha=0.12, linewidth=0)
    if axes.log_x:
        drawing.log_axis(axis)
    if axes.ticks_at_points:
        ticks = sorted({x for points in series.values() for x, _ in points})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    if axes.log_y:
        axis.set_yscale("log")
    axis.set_xlabel(axes.x)
    axis.set_ylabel(axes.y)
    axis.set_title(axes.title, loc="left", weight="bold", fontsize=10)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, facecolor="white")
