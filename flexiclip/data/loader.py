"""Loads the training batches of one rank, with worker processes, and iterates over the captions alone.

With global batch size G and W ranks, step s on rank r covers the G/W positions from s*G + r*G/W on. A batch depends on
its step alone and workers receive step numbers, so a loader starts at any step at no cost.
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
from typing import Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

from flexiclip.config import DataConfig
from flexiclip.data.batch import Batch, BatchOrError, BatchSpec, Collate, Mixup, RankSteps, TrainSample, require_room, shared
from flexiclip.data.dataset import TrainDataset, TrainSources, open_sources
from flexiclip.data.images import TrainTransform
from flexiclip.data.samples import BadSample
from flexiclip.data.sequential import SequentialDataset, stream_captions
from flexiclip.data.worker_watch import Notes, StageBoard
from flexiclip.errors import RunError, UserError

_PARALLEL_READS = 16  # samples that a worker reads at once from remote storage
_EXIT_S = 20.0  # seconds that a worker whose connection is closed may take to end


@runtime_checkable
class Watchable(Protocol):
    """A dataset that can write down what it is doing."""

    def watched_by(self, notes: Notes) -> None:
        """From now on, write down in `notes` what is being done."""


class _StepBatches(Dataset[BatchOrError]):
    """Maps a step to this rank's batch, or to the error that ends the run."""

    def __init__(self, dataset: TrainDataset, collate: Collate, steps: RankSteps) -> None:
        self.dataset, self.collate = dataset, collate
        self.size, self.stride, self.shift = steps.size, steps.global_batch_size, steps.rank * steps.size
        self.parallel = dataset.sources.parallel
        self._pool: ThreadPoolExecutor | None = None
        self._notes: Notes | None = None

    def watched_by(self, notes: Notes) -> None:
        """From now on, write down in `notes` what is being done."""
        self._notes = self.dataset.note = notes

    def __getitem__(self, step: int) -> BatchOrError:
        if self._notes is not None:
            self._notes.step = step
        try:
            start = step * self.stride
            samples = self._samples(range(start + self.shift, start + self.shift + self.size))
            before = self._samples([start + (self.shift - 1) % self.stride])[0] if self.collate.mixup else None
            self.dataset.note("tokenising", "", "")
            return shared(self.collate(step, samples, before))
        except UserError as error:
            return error
        finally:
            self.dataset.note("idle", "", "")

    def _samples(self, positions: Sequence[int]) -> list[TrainSample]:
        """Return the samples at these positions, read by several threads if the storage gains by it."""
        if not self.parallel:
            return [self.dataset[position] for position in positions]
        if self._pool is None:  # created in the worker, because threads do not survive a fork
            self._pool = ThreadPoolExecutor(_PARALLEL_READS)
        return list(self._pool.map(self._sample, positions))

    def _sample(self, position: int) -> TrainSample:
        try:
            return self.dataset[position]
        finally:
            self.dataset.note("idle", "", "")


class Batches:
    """An iterable of Batch. Each pass starts again at the first step, and its workers end with it.

    `stages`: what each worker is doing; it can be read at any time and from any thread.
    """

    def __init__(self, loader: DataLoader[BatchOrError], stages: StageBoard) -> None:
        self.loader, self.stages = loader, stages

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches in order. The workers start in this call, as children of the calling thread.

        The iteration raises UserError if the data cannot be used, and RunError if a worker has died.
        """
        if not self.loader.num_workers:
            assert isinstance(self.loader.dataset, Watchable)
            self.loader.dataset.watched_by(self.stages.notes(0))
        atexit.register(self.end_workers)  # an error's traceback may keep this pass alive until the process ends
        return self._pass(_start(self.loader))

    def _pass(self, batches: Iterator[BatchOrError]) -> Iterator[Batch]:
        try:
            while True:
                try:
                    batch = next(batches, None)
                except (RuntimeError, OSError, EOFError) as error:
                    raise self._explained(error) from None
                if batch is None:
                    return
                if isinstance(batch, (UserError, RunError)):
                    try:
                        raise batch
                    finally:
                        del batch  # the error holds this frame; a frame that held the error too would keep the workers alive
                yield batch
        finally:
            atexit.unregister(self.end_workers)
            self.end_workers()

    def end_workers(self) -> None:
        """Kill the workers that are still alive.

        A worker that hangs in a read cannot respond to a request to stop, and would keep this process from ending.
        """
        pids = {stage.pid for stage in self.stages.read()}
        for child in multiprocessing.active_children():
            if child.pid in pids:
                child.kill()

    def _explained(self, error: Exception) -> Exception:
        """Return a helpful RunError if `error` comes from a worker that has died, and `error` itself otherwise."""
        # The kernel closes the files of a process that it kills a moment before the process has ended.
        closed = isinstance(error, (ConnectionError, EOFError))
        gone = self.stages.dead(_EXIT_S if closed else 0.0)
        if not gone or (isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker")):
            return error
        stage = gone[0]
        return RunError(
            f"data worker {stage.worker} (pid {stage.pid}) has died at {stage.shard} {stage.key}: when the kernel killed it for "
            "want of memory (see dmesg), or of shared memory (a bus error: see the size of /dev/shm), lower data.workers or "
            "data.prefetch; the same command goes on from the last checkpoint"
        )


def _start(loader: DataLoader[BatchOrError]) -> Iterator[BatchOrError]:
    """Start the workers. Raises RunError if there is too little shared memory.

    torch's SIGCHLD handler would raise a worker's death at any point of the trainer, even during a save. Without that
    handler, the death is noticed when the next batch is requested, within five seconds.
    """
    if loader.num_workers:
        require_room()
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    # An earlier loader of this process may have installed torch's handler already.
    is_torchs = getattr(handler, "__module__", "") == signal_handling.__name__
    signal.signal(signal.SIGCHLD, signal.SIG_DFL if is_torchs else handler)
    return batches


def train_loader(config: DataConfig, spec: BatchSpec, steps: RankSteps, sources: TrainSources | None = None) -> Batches:
    """Return the batches of one rank's steps.

    `sources`: the result of open_sources(config, steps.seed, spec.labels), which is called here if it is missing.
    """
    transform = TrainTransform(
        spec.image_size, config.crop_scale, config.crop_ratio, config.flip, spec.interpolation, config.scaled_decoding
    )
    collate = Collate(spec.tokenizer, Mixup(config.mixup, steps.seed) if config.mixup else None)
    if config.sequential:
        stream = SequentialDataset(config, spec.labels, transform, collate, steps)
        return _batches(stream, None, config.workers, config.prefetch)
    dataset = TrainDataset(sources or open_sources(config, steps.seed, spec.labels), transform, steps.seed)
    return _batches(_StepBatches(dataset, collate, steps), steps.numbers, config.workers, config.prefetch)


def _batches(dataset: Dataset[BatchOrError], sampler: Sequence[int] | None, workers: int, prefetch: int) -> Batches:
    """Wrap a dataset of ready batches in torch's DataLoader. With `workers` = 0 it runs in this process."""
    stages = StageBoard(workers)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=functools.partial(_start_worker, stages),
        pin_memory=torch.cuda.is_available(),
    )
    return Batches(loader, stages)


def _leave_with_the_trainer() -> None:
    """End this worker as soon as the trainer's process ends.

    torch's workers check between two batches whether their parent has changed. A worker that hangs in a read would
    therefore outlive a trainer that was killed, and so would every worker whose parent is a fork server.
    """
    trainer = multiprocessing.parent_process()
    assert trainer is not None, "not a worker"
    connection.wait([trainer.sentinel])
    os._exit(1)


def _start_worker(stages: StageBoard, worker: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group. The trainer responds by saving, and needs its workers until
    # then. They end when it closes their queue or dies. torch already limits each worker to one thread.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_leave_with_the_trainer, daemon=True).start()
    info = get_worker_info()
    assert info is not None
    assert isinstance(info.dataset, Watchable)
    info.dataset.watched_by(stages.notes(worker))


def iter_captions(config: DataConfig) -> Iterator[str]:
    """Yield every readable caption of the training shards once, in the order of the shards.

    Tokenizers are trained on these captions, and a locked text tower encodes them in advance.
    """
    if config.sequential:
        yield from stream_captions(config)
        return
    for store in open_sources(config, seed=0).stores:
        for number in range(len(store)):
            try:
                yield from store.captions(*store.locate(number))
            except BadSample:
                continue  # training reports it, and so does `flexiclip data check`
