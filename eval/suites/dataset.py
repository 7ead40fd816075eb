"""A data set of a suite: where its samples lie, how one is read, and the tasks on it."""

from __future__ import annotations

from dataclasses import dataclass

from flexiclip.errors import UserError

from .task import TaskConfig


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
