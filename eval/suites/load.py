"""Reads suites: YAML files that list what a model is scored on.

    flexiclip eval MODEL --suite NAME|FILE|FOLDER|URL|TABLE

A suite lists data sets. A data set gives the place of its samples and the tasks on them, so that one pass over the images serves
all tasks. The names of suites are those of the YAML files in this folder.

The second half fills in what a suite leaves to other files: the tasks, classes, templates and prompts of a data set. This happens
before a model is opened, so a typo in a file stops an evaluation before its first image. The classes, templates and prompts that
the suite gives, itself or in a file that it names, take precedence over the files next to the samples.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flexiclip_eval.suites.dataset import DatasetConfig, placed, training
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
    repeated,
    require_text,
    shard_places,
)
from flexiclip_eval.suites.places import folder_suite, is_table, table_suite
from flexiclip_eval.suites.task import DEFAULT_TEMPLATES, TaskConfig

from flexiclip.config import from_dict
from flexiclip.config.load import parse_yaml
from flexiclip.data.remote import is_remote
from flexiclip.errors import UserError
from flexiclip.libraries import not_installed

log = logging.getLogger("flexiclip.eval")

SUITES = Path(__file__).parent


@dataclass(frozen=True)
class SuiteConfig:
    """A suite: a list of data sets whose rows can be told apart. Raises UserError for an empty list or for equal names."""

    datasets: tuple[DatasetConfig, ...]
    """The data sets in the order in which they are scored."""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise UserError("the suite has no datasets; list at least one")
        names = [dataset.row_name(task) + task.row_kind for dataset in self.datasets for task in dataset.tasks]
        names += [dataset.name for dataset in self.datasets if not dataset.tasks]
        if repeated(names):
            raise UserError("two data sets of the suite share a name, so their rows would be mixed up; rename one")


def load_suite(suite: str) -> SuiteConfig:
    """Read a suite from its name or from a YAML file.

    Relative paths in a file are relative to its folder (config/paths.py). A folder of images, a table of images, and a folder or
    URL in CLIP_benchmark's layout (layout.py) become a suite of their own (places.py). Raises UserError: for a typo in a key it
    suggests the nearest key, and for an unknown name the nearest name, with a list of all names.
    """
    path = Path(suite)
    if is_table(suite) and (path.is_file() or is_remote(suite)):
        return SuiteConfig(tuple(table_suite(suite)))
    if not path.is_file():
        path = SUITES / f"{suite}.yaml"
    if not path.is_file() and (is_remote(suite) or Path(suite).is_dir()):
        inside = None if is_remote(suite) else folder_suite(suite)
        return SuiteConfig((DatasetConfig(root=suite),) if inside is None else tuple(inside))
    if not path.is_file():
        names = sorted(p.stem for p in SUITES.glob("*.yaml"))
        near = difflib.get_close_matches(suite[:100], names, n=1, cutoff=0.5)
        suggestion = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"no suite {suite!r}: {suggestion}neither a file nor one of {', '.join(names)}")
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a suite is a mapping with the key datasets, not a {type(data).__name__}")
    try:
        found = from_dict(SuiteConfig, data)
        if path.parent == SUITES:  # an installed suite, whose data is in the working folder
            return found
        return SuiteConfig(tuple(placed(dataset, path) for dataset in found.datasets))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def load_datasets(suites: Sequence[str]) -> list[DatasetConfig]:
    """Return the data sets of several suites, completed from their files. Raises UserError for equal names or a bad file."""
    found, failed = load_readable(suites)
    for error in failed.values():
        raise error
    return found


def load_readable(suites: Sequence[str]) -> tuple[list[DatasetConfig], dict[str, UserError]]:
    """Return (the data sets of several suites whose files can be read, {name: error} of the others).

    Raises UserError for a suite that cannot be read itself, and for two data sets of the same name.
    """
    if not suites:
        raise UserError("no suite to evaluate: give --suite NAME or eval.suites")
    found: list[DatasetConfig] = []
    failed: dict[str, UserError] = {}
    for dataset in [dataset for suite in suites for dataset in load_suite(suite).datasets]:
        try:
            found.append(complete(dataset))
        except UserError as error:
            failed[dataset.name] = error
    return list(SuiteConfig(tuple(found)).datasets) if found else [], failed


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
    if isinstance(task.classes, str):
        place = task.classes
        found = read_json(place) if place.endswith(".json") else lines(require_text(place))
        classes = tuple(found) if isinstance(found, (list, tuple)) else _texts(found, dataset, f"{place}: classes")
        task = replace(task, classes=classes)
    if isinstance(task.templates, str):
        text = read_text(task.templates)
        if text is None:
            raise UserError(f"the template {task.templates!r} has no {{c}} for the class name, and there is no file of this name")
        task = replace(task, templates=lines(text))
    if isinstance(task.prompts, str):
        task = replace(task, prompts=_texts(read_json(task.prompts), dataset, f"{task.prompts}: prompts"))
    return task


def _texts(found: object, dataset: str, where: str) -> dict[str, Sequence[str]]:
    """Return the mapping in a JSON file, or its part for one data set if the file has several, as CLIP_benchmark's files do.

    Raises UserError if the file does not contain a mapping.
    """
    if not isinstance(found, dict):
        raise UserError(f"{where} map each class to a list of texts, not a {type(found).__name__}")
    part = found.get(dataset.rpartition("/")[2])
    return part if isinstance(part, dict) and all(isinstance(each, dict) for each in found.values()) else found


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
    twice = sorted(repeated(names))
    if twice:
        listed = json.dumps(twice, ensure_ascii=False)
        raise UserError(
            f"data set {root}: the class {twice[0]!r} is given twice in classnames.txt; to keep both, give --suite a file with "
            f"datasets: [{{root: {json.dumps(root, ensure_ascii=False)}, tasks: [{{kind: {task.kind}, label: {task.label}, "
            f"{'ties: topk, ' if task.kind == 'classification' else ''}repeats: {listed}}}]}}]"
        )


def _complete_task(task: TaskConfig, root: str, names: tuple[str, ...] | None, templates: tuple[str, ...] | None) -> TaskConfig:
    if task.label not in LABELS.values():
        return task
    try:
        if task.classes is None and (task.reads_prompts or names is not None):
            task = replace(task, classes=_required(names, "classes", at(root, "classnames.txt")))
        if task.reads_prompts and task.templates == DEFAULT_TEMPLATES and task.prompts is None:
            file = at(root, "zeroshot_classification_templates.txt")
            task = replace(task, templates=_required(templates, "templates", file))
    except UserError as error:
        raise UserError(f"data set {root}: {error}") from None
    return task


def _required(found: tuple[str, ...] | None, key: str, file: str) -> tuple[str, ...]:
    if found is None:
        raise UserError(f"{file}: no such file; write {key}: into a suite")
    return found


def _complete_folder(config: DatasetConfig, folder: str) -> DatasetConfig:
    """Fill in the classes of a folder of images: the names of its class folders, with underscores replaced by spaces."""
    classes: dict[str, Sequence[str]] = {name: name.replace("_", " ") for name in class_folders(folder)}
    tasks = config.tasks or (TaskConfig("classification", label="folder"),)
    # a task that trains keeps classes: null, because the training split may have further classes
    mine = [task.label == "folder" and task.classes is None and not task.trains for task in tasks]
    tasks = tuple(replace(task, classes=classes) if own else task for task, own in zip(tasks, mine, strict=True))
    return replace(config, tasks=tasks)
