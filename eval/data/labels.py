"""The splits of a data set: the images that are scored, and beside them those that a probe is trained on.

The classes of a classification task, and which of them each image is of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from flexiclip_eval.data.images import ImageBlock, Record
from flexiclip_eval.data.shards import Label
from flexiclip_eval.suites.dataset import DatasetConfig, training
from flexiclip_eval.suites.task import TaskConfig
from torch import Tensor

from flexiclip.errors import UserError


@dataclass(frozen=True)
class Splits:
    """training: None where no task of the data set trains."""

    images: ImageBlock
    training: ImageBlock | None

    @property
    def config(self) -> DatasetConfig:
        """The data set."""
        return self.images.config

    def bad_samples(self) -> list[dict[str, str]]:
        """Of both, as ImageBlock.gather gives them. Call after the passes, on all ranks."""
        return [entry for block in (self.images, self.training) if block is not None for entry in block.gather()[1]]


def open_splits(config: DatasetConfig, transform: Callable[[Any], Tensor], *, workers: int, cache_bytes: int) -> Splits:
    """Both splits, of the training one what the tasks that train need. Arguments: ImageBlock; errors: suites.dataset.training."""
    images = ImageBlock(config, transform, workers=workers, cache_bytes=cache_bytes)
    tasks = tuple(task for task in config.tasks if task.trains)
    if not tasks:
        return Splits(images, None)
    trained = replace(training(config), tasks=tasks)
    return Splits(images, ImageBlock(trained, transform, workers=workers, cache_bytes=cache_bytes))


_DIGITS = 10  # of a label that is a number


def resolve_labels(task: TaskConfig, records: Sequence[Record]) -> tuple[list[str], list[list[str]], Tensor]:
    """(classes, the prompts of each, label of each record int64 [N]) of a task whose images have one class each.

    Classes come from the suite, or are the labels found, sorted. A list that names one class is that class. UserError names the
    sample whose label is missing, unknown or several classes.
    """
    several = [label if isinstance(label, tuple) else (label,) for label in _labels(task, records)]
    for record, labels in zip(records, several, strict=True):
        if not labels:
            raise UserError(f"{_where(task)}: the {task.label} of {record.sample} names no class; name another label")
    classes, prompts, number = _classes(task, [label for labels in several for label in labels])
    of_each: list[int] = []
    for record, labels in zip(records, several, strict=True):
        found = {_known(task, number, record, label) for label in labels}
        if len(found) > 1:
            raise UserError(f"{_where(task)}: {record.sample} has several classes; kind: multilabel scores such a data set")
        of_each += found
    return classes, prompts, torch.tensor(of_each, dtype=torch.int64)


def resolve_many(task: TaskConfig, records: Sequence[Record]) -> tuple[list[str], list[list[str]], Tensor]:
    """(classes, the prompts of each, which classes each record is of: bool [N, C]) of a task with many classes an image."""
    labels = [label if isinstance(label, tuple) else (label,) for label in _labels(task, records)]
    classes, prompts, number = _classes(task, [label for several in labels for label in several])
    member = torch.zeros(len(records), len(classes), dtype=torch.bool)
    for row, (record, several) in enumerate(zip(records, labels, strict=True)):
        member[row, [_known(task, number, record, label) for label in several]] = True
    return classes, prompts, member


def _where(task: TaskConfig) -> str:
    return f"task {task.name or task.kind}"


def _labels(task: TaskConfig, records: Sequence[Record]) -> list[Label]:
    assert task.label is not None, "TaskConfig demands a label for what has classes"
    labels = [record.labels[task.label] for record in records]
    for record, label in zip(records, labels, strict=True):
        if label is None:
            raise UserError(f"{_where(task)}: {record.sample} has no {task.label}; name another label in the suite")
    return labels


def _classes(task: TaskConfig, labels: Sequence[Label]) -> tuple[list[str], list[list[str]], dict[Label, int]]:
    """(classes, the prompts of each, the number of each label that is known)."""
    words = task.words or {name: (name,) for name in sorted({str(label) for label in labels})}
    classes = list(words)
    if not classes or (task.classes is None and not all(classes)):
        raise UserError(f"{_where(task)}: {task.label} names no class, or nothing as a class; name another label in the suite")
    number: dict[Label, int] = {name: i for i, name in enumerate(classes)}
    if isinstance(task.classes, dict) and any(name.isdecimal() for name in classes):
        number |= {int(name): i for i, name in enumerate(classes) if name.isdecimal()}  # it says itself what numbers mean
    elif task.classes is not None:
        number |= {i: i for i in range(len(classes))}  # an order in the suite gives numbers a meaning
    else:
        number |= {label: number[str(label)] for label in labels}
    return classes, task.class_prompts(words), number


def _known(task: TaskConfig, number: dict[Label, int], record: Record, label: Label) -> int:
    """The class of a label. As in training, `"3"` that is no name is a number, and 2020 that is no number here may be a name."""
    other: Label = str(label)
    if isinstance(label, str) and label.isdecimal() and len(label) < _DIGITS:
        other = int(label)
    found = number.get(label, number.get(other))
    if found is None:
        count = len(set(number.values()))
        raise UserError(f"{_where(task)}: the label {label!r} of {record.sample} is not among its {count} classes")
    return found
