"""Opens the splits of a data set, and turns the labels of its images into classes.

Splits holds the images that are scored and, for a linear probe, the images of the training split. resolve_labels and resolve_many
return the classes of a task, their prompts, and the class or classes of each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from flexiclip_eval.data.images import ImageBlock, Record, Transform
from flexiclip_eval.data.shards import Label
from flexiclip_eval.suites.dataset import DatasetConfig, training
from flexiclip_eval.suites.task import TaskConfig
from torch import Tensor

from flexiclip.errors import UserError


@dataclass(frozen=True)
class Splits:
    """The images that are scored, and those of the training split (None if no task of the data set trains)."""

    images: ImageBlock
    training: ImageBlock | None

    @property
    def config(self) -> DatasetConfig:
        """The configuration of the data set."""
        return self.images.config

    def bad_samples(self) -> list[dict[str, str]]:
        """Return the bad samples of both splits, as ImageBlock.gather does. All ranks must call this, after the passes."""
        return [entry for block in (self.images, self.training) if block is not None for entry in block.gather()[1]]


def open_splits(config: DatasetConfig, transform: Transform, *, workers: int, cache_bytes: int) -> Splits:
    """Open both splits of a data set; the training split has only the tasks that train.

    transform, workers, cache_bytes: as for ImageBlock. Raises UserError if samples cannot be opened, or if a task trains and the
    training split is not given.
    """
    images = ImageBlock(config, transform, workers=workers, cache_bytes=cache_bytes)
    tasks = tuple(task for task in config.tasks if task.trains)
    if not tasks:
        return Splits(images, None)
    trained = replace(training(config), tasks=tasks)
    return Splits(images, ImageBlock(trained, transform, workers=workers, cache_bytes=cache_bytes))


_DIGITS = 10  # a label with this many digits, or more, is not read as a number


def resolve_labels(task: TaskConfig, records: Sequence[Record]) -> tuple[list[str], list[list[str]], Tensor]:
    """Return (C classes, the prompts of each class, the class of each record as int64 [N] in 0..C-1).

    This is for tasks whose images have one class each. The classes come from the suite, or are the sorted labels of the records.
    A label that is a list of one class counts as this class. Raises UserError that names the sample if its label is missing or
    unknown, or is a list of several classes.
    """
    classes, prompts, found = _resolve(task, records)
    for record, numbers in zip(records, found, strict=True):
        if not numbers:
            raise UserError(f"{_where(task)}: the {task.label} of {record.sample} gives no class; name another label")
        if len(numbers) > 1:
            raise UserError(f"{_where(task)}: {record.sample} has several classes; kind: multilabel scores such a data set")
    return classes, prompts, torch.tensor([number for numbers in found for number in numbers], dtype=torch.int64)


def resolve_many(task: TaskConfig, records: Sequence[Record]) -> tuple[list[str], list[list[str]], Tensor]:
    """Return (C classes, the prompts of each class, whether each record belongs to each class as bool [N, C]).

    This is for tasks whose images may have several classes. The classes and the errors are those of resolve_labels.
    """
    classes, prompts, found = _resolve(task, records)
    member = torch.zeros(len(records), len(classes), dtype=torch.bool)
    for row, numbers in enumerate(found):
        member[row, list(numbers)] = True
    return classes, prompts, member


def _where(task: TaskConfig) -> str:
    return f"task {task.name or task.kind}"


def _resolve(task: TaskConfig, records: Sequence[Record]) -> tuple[list[str], list[list[str]], list[set[int]]]:
    """Return (the classes, the prompts of each class, the numbers of the classes of each record)."""
    assert task.label is not None, "TaskConfig requires a label for tasks with classes"
    several: list[tuple[Label, ...]] = []
    for record in records:
        label = record.labels[task.label]
        if label is None:
            raise UserError(f"{_where(task)}: {record.sample} has no {task.label}; name another label in the suite")
        several.append(label if isinstance(label, tuple) else (label,))
    labels = [label for labels in several for label in labels]
    words = task.words or {name: (name,) for name in sorted({str(label) for label in labels})}
    classes = list(words)
    if not classes or (task.classes is None and not all(classes)):
        raise UserError(f"{_where(task)}: {task.label} gives no class, or an empty class name; name another label in the suite")
    number: dict[Label, int] = {name: i for i, name in enumerate(classes)}
    if isinstance(task.classes, dict) and any(name.isdecimal() for name in classes):
        number |= {int(name): i for i, name in enumerate(classes) if name.isdecimal()}  # the names themselves are numbers
    elif task.classes is not None:
        number |= {i: i for i in range(len(classes))}  # numeric labels refer to the order of the classes in the suite
    else:
        number |= {label: number[str(label)] for label in labels}
    found = [{_known(task, number, record, label) for label in labels} for record, labels in zip(records, several, strict=True)]
    return classes, task.class_prompts(words), found


def _known(task: TaskConfig, number: dict[Label, int], record: Record, label: Label) -> int:
    """Return the number of the class of a label. Raises UserError for an unknown label.

    As in training, the text "3" is read as a number if no class is named "3", and the number 2020 is read as a name if no class
    has that number.
    """
    other: Label = str(label)
    if isinstance(label, str) and label.isdecimal() and len(label) < _DIGITS:
        other = int(label)
    found = number.get(label, number.get(other))
    if found is None:
        count = len(set(number.values()))
        raise UserError(f"{_where(task)}: the label {label!r} of {record.sample} is not among its {count} classes")
    return found
