"""Opens the samples of a data set: shards, a root in CLIP_benchmark's layout, a folder of images or a table."""

from __future__ import annotations

from flexiclip_eval.data.files import FolderSource, TableSource
from flexiclip_eval.data.shards import ShardSource, Source
from flexiclip_eval.suites.dataset import DatasetConfig

from flexiclip.errors import UserError


def open_source(config: DatasetConfig) -> Source:
    """Open the samples of a data set. Raises UserError if there are none, or if they cannot be opened.

    For the training split, use `open_source(suites.dataset.training(config))`.
    """
    source: Source
    if config.images is not None:
        source = FolderSource(config, config.images)
    elif config.csv is not None:
        source = TableSource(config, config.csv)
    else:
        source = ShardSource(config)
    if len(source) == 0:
        raise UserError(f"data set {config.name}: {config.shards or config.root or config.csv} holds no sample")
    return source
