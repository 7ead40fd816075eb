"""A data set of a suite: where its samples are, how they are read, and the tasks on them.

Exactly one key gives the place of the samples: `shards` (webdataset), `root` (CLIP_benchmark's layout), `images` (one folder per
class) or `csv` (a table of paths). load.py fills in what a suite leaves to the files next to the samples.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TypeVar

from flexiclip_eval.suites.layout import printable, repeated
from flexiclip_eval.suites.task import TaskConfig

from flexiclip.config.paths import beside, beside_if_there
from flexiclip.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class DatasetConfig:
    """The samples of a data set, how they are read, and the tasks on them.

    Raises UserError if not exactly one of `shards`, `root`, `images` and `csv` is given, or if the keys contradict each other.
    """

    name: str = ""
    """The `dataset` of the rows; default: the last part of `root`, `images` or `csv`."""
    shards: str | tuple[str, ...] | None = None
    """Paths or URLs of webdataset shards, with braces or wildcards for several: `data/test-{0000..0003}.tar`."""
    tasks: tuple[TaskConfig, ...] = ()
    """The tasks. Default: the task that the files of `root` describe, classification for `images`, retrieval for `csv`."""
    image_keys: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    """The members of a sample that may hold its image."""
    captions: tuple[str, ...] = ("txt",)
    """The members or JSON fields that hold the captions, for retrieval and choice."""
    language: str = "en"
    """The language of the captions and prompts, which is copied into the rows."""
    index_cache: str | None = None
    """The folder for the indices of the shards; default: the folder of the shard, else a cache folder of the user."""
    root: str | None = None
    """A folder or URL in CLIP_benchmark's layout: SPLIT/nshards.txt, SPLIT/0.tar, ..., classnames.txt and so on."""
    split: str = "test"
    """The split of `root` that is scored."""
    images: str | None = None
    """A folder of images with one folder per class: CLASS/*.jpg."""
    csv: str | None = None
    """A table with a heading and one line per image and caption; its cells are separated by tabs or commas."""
    image_column: str = "filepath"
    """The column of `csv` with the paths of the images, which are relative to the folder of the table."""
    caption_column: str = "title"
    """The column of `csv` with the captions; several lines with the same path are several captions of one image."""
    train: str | tuple[str, ...] | None = None
    """The training split, for a linear probe: shards, a split of `root` (default: train), a folder or a table."""

    def __post_init__(self) -> None:
        places = [key for key in ("shards", "root", "images", "csv") if getattr(self, key) is not None]
        place = getattr(self, places[0]) if places else None
        if not self.name and isinstance(place, str):
            object.__setattr__(self, "name", printable(default_name(place)))
        where = f"data set {self.name}" if self.name else "a data set without a name"
        if len(places) != 1:
            raise UserError(f"{where}: give one of shards, root, images and csv, not {' and '.join(places) or 'none'}")
        if self.shards is not None and not self.tasks:
            raise UserError(f"{where}: tasks is empty; write kind: retrieval or kind: classification")
        if self.root is None and self.split != "test":
            raise UserError(f"{where}: split is for root; remove it")
        if repeated(self.row_name(task) + task.row_kind for task in self.tasks):
            raise UserError(f"{where}: two tasks of one kind need a name each to tell their rows apart")
        if self.has_captions and not self.captions:
            raise UserError(f"{where}: its tasks need captions, for example captions: txt")

    @property
    def has_captions(self) -> bool:
        """Whether any task reads captions."""
        return any(task.reads_captions for task in self.tasks)

    def row_name(self, task: TaskConfig) -> str:
        """Return the `dataset` of the rows of a task: the name of the data set, with that of the task if it has one."""
        return f"{self.name}-{task.name}" if task.name else self.name


def placed(config: DatasetConfig, file: str | os.PathLike[str]) -> DatasetConfig:
    """Return the data set with the paths that the suite `file` names, which are relative to the folder of that file."""

    def at(path: str) -> str:
        return beside(path, file)

    def of_all(paths: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        return None if paths is None else at(paths) if isinstance(paths, str) else tuple(map(at, paths))

    def of_file(words: T) -> T | str:
        """A text that is the name of a file, and not a template."""
        return (beside_if_there(words, file) or words) if isinstance(words, str) else words

    tasks = [
        replace(t, classes=of_file(t.classes), templates=of_file(t.templates), prompts=of_file(t.prompts)) for t in config.tasks
    ]
    train = config.train if config.root is not None else of_all(config.train)  # of a root it is the name of a split
    root, images, csv = (None if place is None else at(place) for place in (config.root, config.images, config.csv))
    return replace(config, shards=of_all(config.shards), root=root, images=images, csv=csv, train=train, tasks=tuple(tasks))


def default_name(place: str) -> str:
    """Return the name of a data set at a path or URL: its last part, without `wds_`, a branch on the hub, `.csv` and `.tsv`."""
    parts = [part for part in place.split("/") if part]
    if len(parts) > 2 and parts[-2] in ("resolve", "tree"):
        parts = parts[:-2]
    return parts[-1].removeprefix("wds_").removesuffix(".csv").removesuffix(".tsv") if parts else place


def training(config: DatasetConfig) -> DatasetConfig:
    """Return the training split as a data set with the same tasks. Raises UserError if `train` is missing or has another kind."""
    if config.root is not None:
        if config.train is not None and not isinstance(config.train, str):
            raise UserError(f"data set {config.name}: train names one split of {config.root}, not a list")
        return replace(config, split=config.train or "train", train=None)
    if config.train is None:
        raise UserError(f"data set {config.name}: train must name the training split, for example train: data/train-*.tar")
    if config.shards is not None:
        return replace(config, shards=config.train, train=None)
    if not isinstance(config.train, str):
        raise UserError(f"data set {config.name}: train names one folder or csv, not a list")
    if config.images is not None:
        return replace(config, images=config.train, train=None)
    return replace(config, csv=config.train, train=None)
