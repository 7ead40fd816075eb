"""How metrics are called and written (which are shares, which are better when lower), and how a model's name is cut.

All that an evaluation found, and its rows by task and by model.

What an evaluation prints: a table a task, the lengths it would choose, and how many samples are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flexiclip_eval.rows import Row, TaskInfo
from flexiclip_eval.tradeoffs import CascadeCurve, Choice, Front, sentence

if TYPE_CHECKING:
    from rich.table import Table as RichTable


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


@dataclass(frozen=True)
class ModelInfo:
    """A model that was scored; (model, pretrained) are those of its rows."""

    model: str
    pretrained: str
    config: dict[str, Any] = field(default_factory=dict)  # resolved; {} for a foreign model
    trained_seqhw: tuple[int, ...] = ()
    width: int | None = None  # of its embeddings, where prefixes of them are scored too


@dataclass
class Report:
    """Everything that one evaluation leaves: the rows, and beside them what a reader needs to judge them."""

    command: str
    rows: list[Row] = field(default_factory=list)
    models: list[ModelInfo] = field(default_factory=list)
    tasks: list[TaskInfo] = field(default_factory=list)
    bad_samples: list[dict[str, str]] = field(default_factory=list)  # dataset, shard, key, reason
    details: list[dict[str, Any]] = field(default_factory=list)  # one a row, see tasks/base.py Result
    choices: list[Choice] = field(default_factory=list)
    cascades: list[CascadeCurve] = field(default_factory=list)
    fronts: list[Front] = field(default_factory=list)
    unscored: dict[str, str] = field(default_factory=dict)  # data set -> why it, or a task of it, has no rows

    def add(self, row: Row, task: TaskInfo, details: dict[str, Any]) -> None:
        """One more row, and its task where it is new."""
        self.rows.append(row)
        self.details.append(details)
        if (task.dataset, task.task) not in {(known.dataset, known.task) for known in self.tasks}:
            self.tasks.append(task)

    def add_bad_samples(self, bad: list[dict[str, str]]) -> None:
        """Samples that could not be read; those that another model met already are not counted again."""
        self.bad_samples += [entry for entry in bad if entry not in self.bad_samples]


def rows_of(report: Report, task: TaskInfo) -> list[Row]:
    """The rows of one task, a model after the other, in the order of their lengths."""
    return [row for row in report.rows if (row.dataset, row.task) == (task.dataset, task.task)]


def runs_of(report: Report, task: TaskInfo) -> dict[str, list[Row]]:
    """A task's rows by the label of their model, in the order in which the models were scored."""
    runs: dict[str, list[Row]] = {}
    for row in rows_of(report, task):
        runs.setdefault(label_of(row), []).append(row)
    return runs


def label_of(named: Row | ModelInfo | Choice | CascadeCurve) -> str:
    """A model's name for a reader; the width of its embeddings ends it, where several are scored."""
    name = f"{named.model} {named.pretrained}".strip()
    width = None if isinstance(named, CascadeCurve) else named.width
    return name if width is None else f"{name} [:{width}]"


def cells(row: Row) -> list[str]:
    """seqhw, tokens, patch, GFLOPs and images/s as texts; a dash where unknown."""
    cost = "–" if row.gflops is None else f"{row.gflops:.3g}"
    speed = "–" if row.images_per_s is None else f"{row.images_per_s:,.0f}"
    patch = "×".join(map(str, row.patch_size)) if isinstance(row.patch_size, list) else str(row.patch_size or "–")
    return [str(row.seqhw or "–"), str(row.seq_len or "–"), patch, cost, speed]


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
