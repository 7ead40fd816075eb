"""Batches for one rank. Step s of global batch G at rank r of W is the positions from s*G + r*G/W on, G/W of them.

A loader starts at any step at no cost, because a batch is a function of its step alone: workers are handed step numbers.

The captions of the training shards without their images: what a tokenizer learns from, and a locked text tower encodes.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

from flexiclip.config import DataConfig
from flexiclip.data.batch import Batch, Collate, Item, Mixup, Tokenize, require_room, shared
from flexiclip.data.dataset import TrainDataset, TrainSources, open_sources
from flexiclip.data.images import TrainTransform
from flexiclip.data.samples import BadSample, Labels
from flexiclip.data.sequential import stream_captions
from flexiclip.data.worker_watch import Notes, StageBoard
from flexiclip.errors import RunError, UserError

_PARALLEL_READS = 16  # samples that a worker reads at once from storage that allows it


class _Steps(Dataset[Batch | UserError | RunError]):
    """Step -> the rank's batch. What ends the run is handed over as a value: torch would bury it in a worker's traceback."""

    def __init__(self, dataset: TrainDataset, collate: Collate, global_batch_size: int, rank: int, world: int) -> None:
        self.dataset, self.collate = dataset, collate
        self.size = global_batch_size // world
        self.stride, self.shift = global_batch_size, rank * self.size
        self.parallel = dataset.sources.parallel
        self._pool: ThreadPoolExecutor | None = None
        self._notes: Notes | None = None

    def watched_by(self, notes: Notes) -> None:
        """Note down from now on what is being done."""
        self._notes = self.dataset.note = notes

    def __getitem__(self, step: int) -> Batch | UserError | RunError:
        if self._notes is not None:
            self._notes.step = step
        try:
            start = step * self.stride
            items = self._items(range(start + self.shift, start + self.shift + self.size))
            before = self._items([start + (self.shift - 1) % self.stride])[0] if self.collate.mixup else None
            self.dataset.note("tokenising", "", "")
            return shared(self.collate(step, items, before))
        except UserError as error:
            return error
        finally:
            self.dataset.note("idle", "", "")

    def _items(self, positions: Sequence[int]) -> list[Item]:
        if not self.parallel:
            return [self.dataset[position] for position in positions]
        if self._pool is None:  # made where it is used: threads do not survive the fork of a worker
            self._pool = ThreadPoolExecutor(_PARALLEL_READS)
        return list(self._pool.map(self._item, positions))

    def _item(self, position: int) -> Item:
        try:
            return self.dataset[position]
        finally:
            self.dataset.note("idle", "", "")


class Batches:
    """An iterable of Batch; each pass starts at the first step again. Workers live as long as a pass.

    stages: what each worker is at, readable at any time and from any thread.
    """

    def __init__(self, loader: DataLoader[Any], stages: StageBoard) -> None:
        self.loader, self.stages = loader, stages

    def __iter__(self) -> Iterator[Batch]:
        """The batches in order. The workers start in this call, as children of the calling thread.

        Iterating raises UserError when the data cannot be used, RunError when a worker has died.
        """
        if not self.loader.num_workers:
            self.loader.dataset.watched_by(self.stages.notes(0))  # type: ignore[attr-defined]
        atexit.register(self.end_workers)  # an error may keep this pass alive until then
        return self._pass(_start(self.loader))

    def _pass(self, batches: Iterator[Batch | UserError | RunError]) -> Iterator[Batch]:
        try:
            yield from self._pull(batches)
        finally:
            atexit.unregister(self.end_workers)
            self.end_workers()

    def _pull(self, batches: Iterator[Batch | UserError | RunError]) -> Iterator[Batch]:
        while True:
            try:
                batch = next(batches, None)
            except (RuntimeError, OSError, EOFError) as error:
                raise self._explained(error) from None
            if batch is None:
                return
            if isinstance(batch, (UserError, RunError)):
                raise batch
            yield batch

    def end_workers(self) -> None:
        """Kill the workers that are left: one that hangs in a read hears no request to leave, and would keep this process."""
        pids = {stage.pid for stage in self.stages.read()}
        for child in multiprocessing.active_children():
            if child.pid in pids:
                child.kill()

    def _explained(self, error: Exception) -> Exception:
        """The complaint about a worker that is gone, or its shared memory, in words that help; any other error as it is."""
        gone = [stage for stage in self.stages.read() if stage.stage == "dead"]
        if not gone or (isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker")):
            return error
        stage = gone[0]
        return RunError(
            f"data worker {stage.worker} (pid {stage.pid}) has died at {stage.shard} {stage.key}: when the kernel killed it for "
            "want of memory (see dmesg), or of shared memory (a bus error: see the size of /dev/shm), lower data.workers or "
            "data.prefetch; the same command goes on from the last checkpoint"
        )


def _start(loader: DataLoader[Any]) -> Iterator[Batch | UserError | RunError]:
    """Start the workers. Raises RunError where they lack shared memory.

    torch would have a worker's death raise wherever the trainer happens to be, in the middle of a save too; without its handler
    the death is noticed where the next batch is asked for, within five seconds.
    """
    if loader.num_workers:
        require_room()
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    of_torch = (
        getattr(handler, "__module__", "") == signal_handling.__name__
    )  # an earlier loader of this process has put it there
    signal.signal(signal.SIGCHLD, signal.SIG_DFL if of_torch else handler)
    return batches


def train_loader(
    config: DataConfig,
    *,
    image_size: tuple[int, int],
    interpolation: str,
    tokenizer: Tokenize | None,
    trim: bool,
    pad_id: int,
    seed: int,
    rank: int,
    world: int,
    global_batch_size: int,
    start_step: int,
    steps: int,
    sources: TrainSources | None = None,
    labels: Labels | None = None,
) -> Batches:
    """The batches of the steps start_step to start_step + steps - 1 for one rank.

    image_size: (H, W) in pixels. tokenizer: list[str] -> LongTensor [N, L]; None: no captions are wanted. labels: of the classes,
    where they are wanted. sources: from open_sources(config, seed, labels), opened here when absent. Raises UserError when the
    ranks cannot share the batch evenly.
    """
    if global_batch_size % world:
        raise UserError(f"train.global_batch_size={global_batch_size} does not divide by the {world} ranks of this run")
    transform = TrainTransform(
        image_size, config.crop_scale, config.crop_ratio, config.flip, interpolation, config.scaled_decoding
    )
    collate = Collate(tokenizer, trim, pad_id, Mixup(config.mixup, seed) if config.mixup else None)
    if config.sequential:
        from flexiclip.data.sequential import SequentialDataset

        stream = SequentialDataset(config, labels, transform, collate, global_batch_size // world, seed, rank, start_step, steps)
        return _batches(stream, None, config)
    dataset = TrainDataset(sources or open_sources(config, seed, labels), transform, seed)
    numbers = range(start_step, start_step + steps)
    return _batches(_Steps(dataset, collate, global_batch_size, rank, world), numbers, config)


def _batches(dataset: Dataset[Any], sampler: Sequence[int] | None, config: DataConfig) -> Batches:
    """torch's DataLoader over ready batches, in this process when data.workers is 0."""
    stages = StageBoard(config.workers)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=config.workers,
        prefetch_factor=config.prefetch if config.workers else None,
        collate_fn=_unchanged,
        worker_init_fn=functools.partial(_start_worker, stages),
        pin_memory=torch.cuda.is_available(),
    )
    return Batches(loader, stages)


def _unchanged(batch: Any) -> Any:
    return batch


def _leave_with_the_trainer() -> None:
    """Wait for the trainer's end. torch has a worker look at its parent's number between two batches: one that hangs in a read
    would outlive a trainer that was killed, and so would every worker whose parent is a fork server."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None, "not a worker"
    connection.wait([trainer.sentinel])
    os._exit(1)


def _start_worker(stages: StageBoard, worker: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group. The trainer answers them by saving, and needs its workers
    # until then; they leave when it closes their queue or dies. torch already holds a worker to one thread.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_leave_with_the_trainer, daemon=True).start()
    info: Any = get_worker_info()
    info.dataset.watched_by(stages.notes(worker))


def iter_captions(config: DataConfig) -> Iterator[str]:
    """Every readable caption of the training shards, once, in the shards' order: the corpus of a tokenizer."""
    if config.sequential:
        yield from stream_captions(config)
        return
    for store in open_sources(config, seed=0).stores:
        for number in range(len(store)):
            try:
                yield from store.captions(*store.locate(number))
            except BadSample:
                continue  # training names it, and so does `flexiclip data check`
