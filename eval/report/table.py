"""All that an evaluation found, and its rows by task and by model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..choices.cascade import CascadeCurve
from ..choices.front import Front
from ..choices.length import Choice
from ..rows import Row, TaskInfo


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
