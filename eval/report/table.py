"""Holds all results of an evaluation (Report), and prints them as tables.

The tables are followed by the lengths that the rules would choose, and by the number of samples that could not be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from flexiclip_eval.rows import Details, Row, TaskInfo, pixels, short_name, show
from flexiclip_eval.tradeoffs import CascadeCurve, Choice, Front, sentence

if TYPE_CHECKING:
    from rich.table import Table as RichTable

OfTask = TypeVar("OfTask", Row, TaskInfo, Choice, CascadeCurve, Front)


def brief(label: str, room: int = 48) -> str:
    """Shorten a label to at most `room` characters. The end of a long label is kept, because that is where folders differ."""
    return label if len(label) <= room else "…" + label[1 - room :]


@dataclass(frozen=True)
class ModelInfo:
    """A model that was scored; `model` and `pretrained` are those of its rows."""

    model: str
    pretrained: str
    config: dict[str, object] = field(default_factory=dict)  # the resolved recipe; {} for a model of another library
    trained_seqhw: tuple[int, ...] = ()
    width: int | None = None  # columns of the embeddings that were compared, with --widths


@dataclass
class Report:
    """All results of an evaluation: the rows, and what a reader needs to judge them."""

    command: str
    rows: list[Row] = field(default_factory=list)
    models: list[ModelInfo] = field(default_factory=list)
    tasks: list[TaskInfo] = field(default_factory=list)
    bad_samples: list[dict[str, str]] = field(default_factory=list)  # dataset, shard, key, reason
    details: list[Details] = field(default_factory=list)  # one per row
    choices: list[Choice] = field(default_factory=list)
    cascades: list[CascadeCurve] = field(default_factory=list)
    fronts: list[Front] = field(default_factory=list)
    unscored: dict[str, str] = field(default_factory=dict)  # data set -> why it, or a task of it, has no rows

    def add(self, row: Row, task: TaskInfo, details: Details) -> None:
        """Add a row with its details, and its task if that is new."""
        self.rows.append(row)
        self.details.append(details)
        if not of_task(self.tasks, task):
            self.tasks.append(task)

    def add_bad_samples(self, bad: list[dict[str, str]]) -> None:
        """Add samples that could not be read. A sample that an earlier model could not read either is not added again."""
        self.bad_samples += [entry for entry in bad if entry not in self.bad_samples]


def of_task(items: Iterable[OfTask], task: TaskInfo) -> list[OfTask]:
    """Return those of the rows, choices, cascades or fronts that belong to a task, in their order."""
    return [each for each in items if (each.dataset, each.task) == (task.dataset, task.task)]


def runs_of(report: Report, task: TaskInfo) -> dict[str, list[Row]]:
    """Return {label of a model: its rows of one task}, in the order in which the models were scored."""
    runs: dict[str, list[Row]] = {}
    for row in of_task(report.rows, task):
        runs.setdefault(label_of(row), []).append(row)
    return runs


def label_of(named: Row | ModelInfo | Choice | CascadeCurve) -> str:
    """Return the label of a model: `model` and `pretrained`, and the width of its embeddings if several widths are scored."""
    name = f"{named.model} {named.pretrained}".strip()
    width = None if isinstance(named, CascadeCurve) else named.width
    return name if width is None else f"{name} [:{width}]"


def labelled_sentence(report: Report, choice: Choice) -> str:
    """Return a choice as one line of text, which begins with the label of the model if there are several models."""
    return f"{label_of(choice)}: {sentence(choice)}" if len(report.models) > 1 else sentence(choice)


def cells(row: Row) -> list[str]:
    """Return seqhw, tokens, patch size, GFLOPs and images/s of a row as texts; a dash for an unknown value."""
    cost = "–" if row.gflops is None else f"{row.gflops:.3g}"
    speed = "–" if row.images_per_s is None else f"{row.images_per_s:,.0f}"
    return [str(row.seqhw or "–"), str(row.seq_len or "–"), pixels(row.patch_size) or "–", cost, speed]


WIDTH = 80  # columns of the narrowest terminal that is still common
_COST = ("seqhw", "tokens", "patch", "GFLOPs", "images/s")


def print_report(report: Report) -> None:
    """Print the results of every task: one table per model, then the choices, and what could not be read.

    A table has at most 80 columns. It has one line per length, with costs and metrics, and the chance level as its last line.
    """
    from rich.console import Console

    console = Console()
    for task in report.tasks:
        rows = of_task(report.rows, task)
        console.print(f"{task.dataset} · {task.task} · {rows[0].n} images", style="italic", markup=False, soft_wrap=True)
        for names in _parts(rows, list(rows[0].metrics)):
            for label, of_model in runs_of(report, task).items():
                if len(report.models) > 1:
                    console.print(label, style="bold", markup=False, highlight=False, soft_wrap=True)
                console.print(_table(of_model, names, task), "")
    for choice in report.choices:
        console.print(labelled_sentence(report, choice), markup=False, highlight=False, soft_wrap=True)
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
    """Divide the metrics among as many tables as the width of 80 columns needs."""
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
    """Break a heading into several lines, so that its column is narrow."""
    return heading.replace("→", "→\n").replace(" ", "\n")
