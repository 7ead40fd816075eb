"""What an evaluation prints: a table a task, the lengths it would choose, and how many samples are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..choices.length import sentence
from ..rows import Row, TaskInfo
from .names import short_name, show
from .table import Report, cells, label_of, rows_of, runs_of

if TYPE_CHECKING:
    from rich.table import Table as RichTable

WIDTH = 80  # columns, the narrowest terminal that is still met
_COST = ("seqhw", "tokens", "patch", "GFLOPs", "images/s")


def print_report(report: Report) -> None:
    """Tables of at most 80 columns: lengths down, a table for each model; cost and metrics across; chance as the last line."""
    from rich.console import Console

    console = Console()
    for task in report.tasks:
        rows = rows_of(report, task)
        console.print(f"{task.dataset} · {task.task} · {rows[0].n} images", style="italic", markup=False, soft_wrap=True)
        for names in _parts(rows, list(rows[0].metrics)):
            for label, of_model in runs_of(report, task).items():
                if len(report.models) > 1:
                    console.print(label, style="bold", markup=False, highlight=False, soft_wrap=True)
                console.print(_table(of_model, names, task), "")
    for choice in report.choices:
        whose = f"{label_of(choice)}: " if len(report.models) > 1 else ""
        console.print(whose + sentence(choice), markup=False, highlight=False, soft_wrap=True)
    for name, reason in report.unscored.items():
        console.print(f"data set {name} could not be scored as a whole: {reason}", style="yellow", markup=False, soft_wrap=True)
    if report.bad_samples:
        console.print(f"[yellow]samples that could not be read and are not counted: {len(report.bad_samples)}[/yellow]")


def _table(rows: Sequence[Row], names: Sequence[str], task: TaskInfo) -> RichTable:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in (*_COST, *map(short_name, names)):
        table.add_column(_broken(heading), justify="right", no_wrap=True, vertical="bottom")
    for row in rows:
        table.add_row(*cells(row), *(show(name, row.metrics.get(name)) for name in names))
    table.add_section()
    table.add_row("chance", "", "", "", "", *(show(name, task.chance.get(name)) for name in names), style="dim")
    return table


def _parts(rows: Sequence[Row], names: Sequence[str]) -> list[list[str]]:
    """The metrics in as many tables as the width needs."""
    used = sum(1 + max(len(heading), *(len(cells(row)[i]) for row in rows)) for i, heading in enumerate(_COST))
    parts: list[list[str]] = [[]]
    left = WIDTH - used
    for name in names:
        lines = _broken(short_name(name)).splitlines()
        width = 1 + max(*map(len, lines), *(len(show(name, row.metrics.get(name))) for row in rows), 0)
        if width > left and parts[-1]:
            parts.append([])
            left = WIDTH - used
        parts[-1].append(name)
        left -= width
    return parts


def _broken(heading: str) -> str:
    """A heading over several lines: narrow columns."""
    return heading.replace("→", "→\n").replace(" ", "\n")
