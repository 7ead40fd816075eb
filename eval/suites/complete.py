"""Fills in what a suite leaves to other files: the tasks, classes, templates and prompts of a data set.

This happens before a model is opened, so a typo in a file stops an evaluation before its first image. The classes, templates and
prompts that the suite gives, itself or in a file that it names, take precedence over the files next to the samples.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flexiclip_eval.suites.dataset import DatasetConfig, training
from flexiclip_eval.suites.layout import (
    Type,
    at,
    class_folders,
    class_names,
    class_templates,
    dataset_type,
    lines,
    read_json,
    read_text,
    require_text,
    shard_places,
)
from flexiclip_eval.suites.task import DEFAULT_TEMPLATES, TaskConfig

from flexiclip.errors import UserError
from flexiclip.libraries import not_installed

log = logging.getLogger("flexiclip.eval")

LABELS = {"classification": "cls", "multilabel": "npy"}
"""The member of a sample that holds the class of the image in CLIP_benchmark's layout, by the kind of the task."""


def complete(config: DatasetConfig) -> DatasetConfig:
    """Return the data set with its tasks, whose classes, templates and prompts are texts, not files. Raises UserError."""
    if config.root is not None:
        config = _complete_root(config, config.root)
    elif config.images is not None:
        config = _complete_folder(config, config.images)
    elif config.csv is not None and not config.tasks:
        config = replace(config, tasks=(TaskConfig("retrieval"),))
    tasks = []
    for task in config.tasks:
        try:
            tasks.append(read_files(task, config.name))
        except UserError as error:
            raise UserError(f"data set {config.name}: {error}") from None
        if "" in (tasks[-1].classes or ()):
            number = list(tasks[-1].classes or ()).index("")
            log.warning("data set %s: class %d has an empty name, which its prompts have for {c}", config.name, number)
    if any(task.trains for task in tasks):
        _require_training(config)
    return replace(config, tasks=tuple(tasks))


def _require_training(config: DatasetConfig) -> None:
    """Raise UserError if the training split is missing, or scikit-learn, which learns from it."""
    split = training(config)
    if split.root is not None:
        shard_places(split.root, split.split)
    if importlib.util.find_spec("sklearn") is None:
        raise not_installed("scikit-learn", "flexiclip[probe]", f"data set {config.name}: kind: linear_probe")


def read_files(task: TaskConfig, dataset: str) -> TaskConfig:
    """Return the task with the contents of the files that it names in place of their names. Raises UserError.

    dataset: the name of the data set, which selects its part of a file that holds several data sets.
    """
    changes: dict[str, Any] = {}
    if isinstance(task.classes, str):
        place = task.classes
        found = read_json(place) if place.endswith(".json") else lines(require_text(place))
        found = tuple(found) if isinstance(found, list) else found
        changes["classes"] = _of_dataset(found, dataset) if isinstance(found, dict) else found
    if isinstance(task.templates, str):
        text = read_text(task.templates)
        if text is None:
            raise UserError(f"the template {task.templates!r} has no {{c}} for the class name, and is no file")
        changes["templates"] = lines(text)
    if isinstance(task.prompts, str):
        found = read_json(task.prompts)
        if not isinstance(found, dict):
            raise UserError(f"{task.prompts}: prompts map each class to a list of texts, not a {type(found).__name__}")
        changes["prompts"] = _of_dataset(found, dataset)
    return replace(task, **changes) if changes else task


def _of_dataset(found: dict[str, Any], dataset: str) -> Any:
    """Return the part of one data set if a file holds several data sets, as CLIP_benchmark's own files do; else the whole."""
    part = found.get(dataset.rpartition("/")[2])
    if isinstance(part, dict) and all(isinstance(each, dict) for each in found.values()):
        return part
    return found


def _complete_root(config: DatasetConfig, root: str) -> DatasetConfig:
    shard_places(root, config.split)  # checked first, so that a wrong address is reported as such
    kind = dataset_type(root)
    alone = not config.tasks
    if alone:
        config = replace(config, tasks=(_task_of_root(kind),))
    if config.captions == ("txt",):
        config = replace(config, captions=("txt:lines",))
    if all(task.label is None for task in config.tasks):
        return config
    names, templates = class_names(root), class_templates(root)
    if alone:
        _require_distinct(names or (), config.tasks[0], root)
    return replace(config, tasks=tuple(_complete_task(task, root, names, templates) for task in config.tasks))


def _task_of_root(kind: Type) -> TaskConfig:
    """Return the task of a root that has none in the suite, scored as CLIP_benchmark scores it, because the layout is theirs."""
    if kind == "retrieval":
        return TaskConfig(kind, merge_captions=False, ties="topk")
    return TaskConfig(kind, label=LABELS[kind], ties="topk" if kind == "classification" else "chance")


def _require_distinct(names: Sequence[str], task: TaskConfig, root: str) -> None:
    """Raise UserError if a root without tasks has a class name twice; the message shows a suite that allows it."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        listed = json.dumps(twice, ensure_ascii=False)
        raise UserError(
            f"data set {root}: the class {twice[0]!r} stands twice in classnames.txt; if that is meant, give --suite a file with "
            f"datasets: [{{root: {json.dumps(root, ensure_ascii=False)}, tasks: [{{kind: {task.kind}, label: {task.label}, "
            f"{'ties: topk, ' if task.kind == 'classification' else ''}repeats: {listed}}}]}}]"
        )


def _complete_task(task: TaskConfig, root: str, names: tuple[str, ...] | None, templates: tuple[str, ...] | None) -> TaskConfig:
    if task.label not in LABELS.values():
        return task
    try:
        if task.classes is None and (task.reads_prompts or names is not None):
            if names is None:
                raise UserError(f"{at(root, 'classnames.txt')}: no such file; write classes: into a suite")
            task = replace(task, classes=names)
        if task.reads_prompts and task.templates == DEFAULT_TEMPLATES and task.prompts is None:
            if templates is None:
                raise UserError(
                    f"{at(root, 'zeroshot_classification_templates.txt')}: no such file; write templates: into a suite"
                )
            task = replace(task, templates=templates)
    except UserError as error:
        raise UserError(f"data set {root}: {error}") from None
    return task


def _complete_folder(config: DatasetConfig, folder: str) -> DatasetConfig:
    """Fill in the classes of a folder of images: the names of its class folders, with underscores replaced by spaces."""
    names = class_folders(folder)
    tasks = config.tasks or (TaskConfig("classification", label="folder"),)
    completed = []
    for task in tasks:
        # the classes of a task that trains stay open, because the training split may have further ones
        if task.label == "folder" and task.classes is None and not task.trains:
            task = replace(task, classes={name: name.replace("_", " ") for name in names})
        completed.append(task)
    return replace(config, tasks=tuple(completed))
