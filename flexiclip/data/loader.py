"""Batches for one rank. Step s of global batch G at rank r of W is the positions from s*G + r*G/W on, G/W of them.

A loader starts at any step at no cost, because a batch is a function of its step alone: workers are handed step numbers.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from flexiclip.config import DataConfig
from flexiclip.data.batch import Batch, Collate, Tokenize
from flexiclip.data.dataset import TrainDataset, TrainSources, open_sources
from flexiclip.data.images import TrainTransform
from flexiclip.errors import UserError

_PARALLEL_READS = 16  # samples that a worker reads at once from storage that allows it


class _Steps(Dataset[Batch | UserError]):
    """Step -> the rank's batch. A user's mistake is handed over as a value: torch would bury it in a worker's traceback."""

    def __init__(self, dataset: TrainDataset, collate: Collate, global_batch_size: int, rank: int, world: int) -> None:
        self.dataset, self.collate = dataset, collate
        self.size = global_batch_size // world
        self.stride, self.shift = global_batch_size, rank * self.size
        self.parallel = dataset.sources.parallel
        self._pool: ThreadPoolExecutor | None = None

    def __getitem__(self, step: int) -> Batch | UserError:
        start = step * self.stride + self.shift
        positions = range(start, start + self.size)
        try:
            if not self.parallel:
                return self.collate(step, [self.dataset[position] for position in positions])
            if self._pool is None:  # made where it is used: threads do not survive the fork of a worker
                self._pool = ThreadPoolExecutor(_PARALLEL_READS)
            return self.collate(step, list(self._pool.map(self.dataset.__getitem__, positions)))
        except UserError as error:
            return error


class Batches:
    """An iterable of Batch; each pass starts at the first step again. Workers live as long as a pass."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in order. Raises UserError when the data cannot be used."""
        for batch in self.loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


def train_loader(
    config: DataConfig,
    *,
    image_size: tuple[int, int],
    interpolation: str,
    tokenizer: Tokenize,
    trim: bool,
    pad_id: int,
    seed: int,
    rank: int,
    world: int,
    global_batch_size: int,
    start_step: int,
    steps: int,
    sources: TrainSources | None = None,
) -> Batches:
    """The batches of the steps start_step to start_step + steps - 1 for one rank.

    image_size: (H, W) in pixels. tokenizer: list[str] -> LongTensor [N, L]. sources: from open_sources(config, seed), opened here
    when absent. Raises UserError when the ranks cannot share the batch evenly.
    """
    if global_batch_size % world:
        raise UserError(f"train.global_batch_size={global_batch_size} does not divide by the {world} ranks of this run")
    transform = TrainTransform(image_size, config.crop_scale, config.crop_ratio, config.flip, interpolation)
    collate = Collate(tokenizer, trim, pad_id)
    if config.sequential:
        from flexiclip.data.sequential import SequentialDataset

        stream = SequentialDataset(config, transform, collate, global_batch_size // world, seed, rank, start_step, steps)
        return Batches(_torch_loader(stream, None, config))
    dataset = TrainDataset(sources or open_sources(config, seed), transform, seed)
    numbers = range(start_step, start_step + steps)
    return Batches(_torch_loader(_Steps(dataset, collate, global_batch_size, rank, world), numbers, config))


def _torch_loader(dataset: Dataset[Any], sampler: Sequence[int] | None, config: DataConfig) -> DataLoader[Any]:
    """torch's DataLoader over ready batches, in this process when data.workers is 0."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=config.workers,
        prefetch_factor=config.prefetch if config.workers else None,
        collate_fn=_unchanged,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
    )


def _unchanged(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group. The trainer answers them by saving, and needs its workers
    # until then; they leave when it closes their queue or dies. torch already holds a worker to one thread.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
