"""Suites: what a model is scored on, in YAML.

A suite lists data sets; a data set names its shards and the tasks that its images serve, so that one pass over the images serves
them all. `flexiclip eval MODEL --suite NAME|FILE`; the names are those of the files in suites/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flexiclip.config import from_dict
from flexiclip.config.load import parse_yaml
from flexiclip.errors import UserError

SUITES = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class TaskConfig:
    """retrieval: captions find images and images captions. classification: an image finds its class among prompts."""

    kind: Literal["retrieval", "classification"]
    name: str | None = None  # tells two tasks of one kind apart; joins the data set's name in the rows
    label: str | None = None  # classification: `json:FIELD`, or a member such as cls that holds a class name or its number
    classes: tuple[str, ...] | dict[str, str] | None = None  # names, or label -> its words; default: the labels found, sorted
    templates: tuple[str, ...] = ("a photo of a {c}.",)  # classification: averaged prompts; {c} becomes the class's words

    def __post_init__(self) -> None:
        where = f"task {self.name or self.kind}"
        if self.kind == "retrieval":
            if self.label is not None or self.classes is not None:
                raise UserError(f"{where}: label and classes are for kind: classification; remove them")
            return
        if not self.label:
            raise UserError(f"{where}: name the field that holds the class, for example label: json:category")
        if not self.templates:
            raise UserError(f"{where}: templates is empty; write at least one, such as 'a photo of a {{c}}.'")
        for template in self.templates:
            if "{c}" not in template:
                raise UserError(f"{where}: the template {template!r} has no {{c}} for the class name")
        if self.classes is not None:
            check_classes(list(self.classes), where)
            if isinstance(self.classes, dict) and not all(isinstance(words, str) for words in self.classes.values()):
                raise UserError(f"{where}: classes maps each label to its words, both texts")

    @property
    def words(self) -> dict[str, str]:
        """Label -> the words that stand for it in a prompt; empty when the classes are derived from the labels."""
        if isinstance(self.classes, dict):
            return dict(self.classes)
        return {label: label for label in self.classes or ()}


def check_classes(classes: Sequence[str], where: str) -> None:
    """Raise UserError for an empty list of classes or a name that stands twice."""
    if not classes:
        raise UserError(f"{where}: the list of classes is empty")
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise UserError(f"{where}: the class {twice[0]!r} stands twice in the list of classes")


@dataclass(frozen=True)
class DatasetConfig:
    """Shards, how a sample is read, and the tasks on it."""

    name: str
    shards: str | tuple[str, ...]
    tasks: tuple[TaskConfig, ...]
    image_keys: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    captions: tuple[str, ...] = ("txt",)  # members or json fields with the captions that retrieval uses
    language: str = "en"
    index_cache: str | None = None  # folder for shard indices; default: beside the shard, else a user cache folder

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UserError(f"data set {self.name}: tasks is empty; write kind: retrieval or kind: classification")
        seen = [self.row_name(task) + task.kind for task in self.tasks]
        if len(set(seen)) < len(seen):
            raise UserError(f"data set {self.name}: two tasks of one kind need a name each to tell their rows apart")
        if self.has_retrieval and not self.captions:
            raise UserError(f"data set {self.name}: retrieval needs captions, for example captions: txt")

    @property
    def has_retrieval(self) -> bool:
        """Whether any task reads captions."""
        return any(task.kind == "retrieval" for task in self.tasks)

    def row_name(self, task: TaskConfig) -> str:
        """The `dataset` of a task's rows."""
        return f"{self.name}-{task.name}" if task.name else self.name


@dataclass(frozen=True)
class SuiteConfig:
    """A list of data sets."""

    datasets: tuple[DatasetConfig, ...]

    def __post_init__(self) -> None:
        names = [dataset.row_name(task) + task.kind for dataset in self.datasets for task in dataset.tasks]
        if not names:
            raise UserError("the suite has no datasets")
        if len(set(names)) < len(names):
            raise UserError("two data sets of the suite share a name; their rows could not be told apart")


def load_suite(suite: str) -> SuiteConfig:
    """Read a suite given by file or by name. Raises UserError with the nearest key for a typo, or the list of names."""
    path = Path(suite)
    if not path.is_file():
        path = SUITES / f"{suite}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in SUITES.glob("*.yaml")))
        raise UserError(f"no suite {suite!r}: neither a file nor one of {names}")
    data = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: a suite is a mapping with the key datasets, not a {type(data).__name__}")
    try:
        return from_dict(SuiteConfig, data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def load_datasets(suites: Sequence[str]) -> list[DatasetConfig]:
    """The data sets of several suites together, held to distinct names. Raises UserError."""
    if not suites:
        raise UserError("no suite to evaluate: give --suite NAME or eval.suites")
    return list(SuiteConfig(tuple(dataset for suite in suites for dataset in load_suite(suite).datasets)).datasets)
