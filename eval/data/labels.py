"""The classes of a classification task, and which of them each image is of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flexiclip.errors import UserError

from ..suites.task import TaskConfig, check_classes
from .images import Record
from .source import Label


def resolve_labels(task: TaskConfig, records: Sequence[Record]) -> tuple[list[str], list[list[str]], Tensor]:
    """(classes, the prompts of each, label of each record int64 [N]) of a classification task.

    Classes come from the suite, or are the labels found, sorted. UserError names the sample whose label is missing or unknown.
    """
    assert task.label is not None, "TaskConfig demands a label for classification"
    where = f"task {task.name or task.kind}"
    labels = [record.labels[task.label] for record in records]
    for record, label in zip(records, labels, strict=True):
        if label is None:
            raise UserError(f"{where}: {record.sample} has no {task.label}; name another label in the suite")
    words = task.words or {name: (name,) for name in sorted({str(label) for label in labels})}
    classes = list(words)
    check_classes(classes, where)
    number: dict[Label, int] = {name: i for i, name in enumerate(classes)}
    if task.classes is not None:
        number |= {i: i for i in range(len(classes))}  # a list in the suite gives numbers a meaning
    else:
        number |= {label: number[str(label)] for label in labels}
    for record, label in zip(records, labels, strict=True):
        if label not in number:
            raise UserError(f"{where}: the label {label!r} of {record.sample} is not among its {len(classes)} classes")
    return classes, task.class_prompts(words), torch.tensor([number[label] for label in labels], dtype=torch.int64)
