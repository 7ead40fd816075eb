"""The splits of a data set: the images that are scored, and beside them those that a probe is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..suites.dataset import DatasetConfig, training
from .images import ImageBlock


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
