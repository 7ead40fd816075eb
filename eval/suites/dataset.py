"""A data set of a suite: where its samples lie, how one is read, and the tasks on it.

Exactly one key says where they lie: `shards` (webdataset), `root` (CLIP_benchmark's layout), `images` (a folder a class) or `csv`
(a table of paths). What a suite leaves to files beside the samples is filled in by complete.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from flexiclip_eval.suites.layout import printable
from flexiclip_eval.suites.task import TaskConfig

from flexiclip.errors import UserError


@dataclass(frozen=True)
class DatasetConfig:
    """The samples, how one is read, and the tasks on them."""

    name: str = ""  # default: that of `root`, `images` or `csv`
    shards: str | tuple[str, ...] | None = None
    tasks: tuple[TaskConfig, ...] = ()  # default: of `root` what its files say, of `images` classification, of `csv` retrieval
    image_keys: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    captions: tuple[str, ...] = ("txt",)  # members or json fields with the captions that retrieval uses
    language: str = "en"
    index_cache: str | None = None  # folder for shard indices; default: beside the shard, else a user cache folder
    root: str | None = None  # folder or URL: SPLIT/nshards.txt, SPLIT/0.tar, ..., classnames.txt and so on
    split: str = "test"  # of root
    images: str | None = None  # folder: CLASS/*.jpg
    csv: str | None = None  # a line an image and caption, with a heading; tabs or commas
    image_column: str = "filepath"  # of csv; relative paths start from the folder of the csv
    caption_column: str = "title"  # of csv; several lines of one path are several captions
    train: str | tuple[str, ...] | None = None  # the training split: shards, a split of root, a folder or a csv; root: train

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
        seen = [self.row_name(task) + task.row_kind for task in self.tasks]
        if len(set(seen)) < len(seen):
            raise UserError(f"{where}: two tasks of one kind need a name each to tell their rows apart")
        if self.has_captions and not self.captions:
            raise UserError(f"{where}: its tasks need captions, for example captions: txt")

    @property
    def has_captions(self) -> bool:
        """Whether any task reads captions."""
        return any(task.reads_captions for task in self.tasks)

    def row_name(self, task: TaskConfig) -> str:
        """The `dataset` of a task's rows."""
        return f"{self.name}-{task.name}" if task.name else self.name


def default_name(place: str) -> str:
    """What a data set at a path or URL is called: its folder, without the `wds_` and branch of a published one."""
    parts = [part for part in place.split("/") if part]
    if len(parts) > 2 and parts[-2] in ("resolve", "tree"):
        parts = parts[:-2]
    return parts[-1].removeprefix("wds_").removesuffix(".csv").removesuffix(".tsv") if parts else place


def training(config: DatasetConfig) -> DatasetConfig:
    """The training split of a data set, as a data set with the same tasks. Raises UserError where `train` is not given."""
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
    place = "images" if config.images is not None else "csv"
    return replace(config, train=None, **{place: config.train})  # type: ignore[arg-type]
