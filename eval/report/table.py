"""Holds all results of an evaluation (Report), and makes the tables of its tasks, which terminal.py and files.py write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from flexiclip_eval.rows import Details, Row, TaskInfo, best_of, pixels, short_name, show
from flexiclip_eval.tradeoffs import CascadeCurve, Choice, Front, FrontPoint, sentence
from torch import Tensor

from flexiclip.text_tables import TextTable

OfTask = TypeVar("OfTask", Row, TaskInfo, Choice, CascadeCurve, Front)
Labelled = TypeVar("Labelled", Row, "ModelInfo", CascadeCurve)


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
    label: str | None = None  # the name that the user gave to the model


@dataclass
class Report:
    """All results of an evaluation: the rows, and what a reader needs to judge them."""

    command: str
    rows: list[Row] = field(default_factory=list)
    models: list[ModelInfo] = field(default_factory=list)
    tasks: list[TaskInfo] = field(default_factory=list)
    bad_samples: list[dict[str, str]] = field(default_factory=list)  # dataset, shard, key, reason
    details: list[Details] = field(default_factory=list)  # one per row
    hits: list[Tensor | None] = field(default_factory=list)  # those of each row (tasks.base.Result); in no file
    choices: list[Choice] = field(default_factory=list)
    cascades: list[CascadeCurve] = field(default_factory=list)
    fronts: list[Front] = field(default_factory=list)
    unscored: dict[str, str] = field(default_factory=dict)  # data set -> why it, or a task of it, has no rows
    date: str = ""  # when the evaluation began, such as 2026-01-31
    version: str = ""  # of flexiclip

    def add(self, row: Row, task: TaskInfo, details: Details, hits: Tensor | None = None) -> None:
        """Add a row with its details and the hits of its queries, and its task if that is new."""
        self.rows.append(row)
        self.details.append(details)
        self.hits.append(hits)
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


def label_of(named: Row | ModelInfo | Choice | CascadeCurve | FrontPoint) -> str:
    """Return the label of a model: the name that the user gave it, else `model` and `pretrained`.

    If several widths of the embeddings are scored, the width of these follows.
    """
    name = name_of(named)
    width = None if isinstance(named, CascadeCurve) else named.width
    return name if width is None else f"{name} [:{width}]"


def name_of(named: Row | ModelInfo | Choice | CascadeCurve | FrontPoint) -> str:
    """Return the label of a model without the width of its embeddings."""
    return named.label or f"{named.model} {named.pretrained}".strip()


def short_labels(labels: Sequence[str]) -> dict[str, str]:
    """Return {label: the label without what all labels begin with}, for tables and legends.

    Whole words and folders are left out, never a part of one: `ViT runs/a` and `ViT runs/b` become a and b.
    """
    shared = ""
    shortest: str = min(labels, key=len) if labels else ""
    for i, letter in enumerate(shortest):
        if any(label[i] != letter for label in labels):
            break
        if letter in " /":
            shared = labels[0][: i + 1]
    if len(set(labels)) < 2 or any(label[len(shared) :].strip(" /") == "" for label in labels):
        shared = ""
    return {label: label[len(shared) :] for label in labels}


def labelled_sentence(report: Report, choice: Choice) -> str:
    """Return a choice as one line of text, which begins with the label of the model if there are several models."""
    return f"{label_of(choice)}: {sentence(choice)}" if len(report.models) > 1 else sentence(choice)


def cells(row: Row) -> list[str]:
    """Return seqhw, tokens, patch size, GFLOPs and images/s of a row as texts; a dash for an unknown value."""
    cost = "–" if row.gflops is None else f"{row.gflops:.3g}"
    speed = "–" if row.images_per_s is None else f"{row.images_per_s:,.0f}"
    return [str(row.seqhw or "–"), str(row.seq_len or "–"), pixels(row.patch_size) or "–", cost, speed]


COSTS = ("seqhw", "tokens", "patch", "GFLOPs", "images/s")


def best_values(rows: Sequence[Row], names: Sequence[str]) -> dict[str, float]:
    """Return {metric: its best value in the rows}; a metric that does not differ between them has none."""
    values = {name: [row.metrics[name] for row in rows if name in row.metrics] for name in names}
    return {name: best_of(name, several) for name, several in values.items() if len(set(several)) > 1}


def task_table(report: Report, task: TaskInfo) -> TextTable:
    """Return the table of a task: a row per model and length with costs, metrics and their standard errors; last, chance.

    The first column names the model if there are several models.
    """
    rows = of_task(report.rows, task)
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    several = len(report.models) > 1
    short = short_labels([label_of(model) for model in report.models])
    best = best_values(rows, names)
    head = [*["model"] * several, *COSTS, *map(short_name, names)]
    table = TextTable(head, title=f"{task.dataset} · {task.task} · {rows[0].n:,} images")
    for number, row in enumerate(rows):
        values = [show(name, row.metrics.get(name), row.error(name)) for name in names]
        table.rows.append([*[short.get(label_of(row), label_of(row))] * several, *cells(row), *values])
        first = len(head) - len(names)
        table.best |= {(number, first + i) for i, name in enumerate(names) if row.metrics.get(name) == best.get(name, object())}
    empty = [""] * (len(COSTS) - 1 + several)
    table.rows.append(["chance", *empty, *(show(name, task.chance.get(name)) for name in names)])
    return table
