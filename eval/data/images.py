"""Opens the samples of a data set and decodes its images: each rank has a block of them.

Threads decode the images, and a cache of bounded size keeps them. A sample that cannot be read is counted and named, but never
replaced: `n` in the rows does not include it, on any rank.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from flexiclip_eval.data.files import FolderSource, TableSource
from flexiclip_eval.data.shards import Label, ShardSource, Source
from flexiclip_eval.suites.dataset import DatasetConfig
from PIL import Image
from torch import Tensor

from flexiclip.data.samples import BadSample
from flexiclip.distributed import block, gather_objects, largest_block
from flexiclip.errors import UserError

log = logging.getLogger("flexiclip.eval")

TIMED_BATCHES = 3  # at least this many, so that a single slow batch does not decide the measured speed
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")

Transform = Callable[[Image.Image], Tensor]
"""PIL image -> float32 [3, H, W]."""


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
        raise UserError(f"data set {config.name}: {config.shards or config.root or config.csv} has no samples; check the path")
    return source


@dataclass(frozen=True)
class Record:
    """The facts about an image that the metrics need: its captions, and its labels by the `label` keys of the tasks."""

    sample: str  # its name in messages, such as shard and key
    captions: tuple[str, ...]
    labels: dict[str, Label]
    number: int  # its number in the source, with which the report reads the image again


Samples = tuple[list[Record], list[dict[str, str]]]
"""The records of the images that can be read, and the bad samples as dicts with dataset, shard, key and reason."""


class ImageBlock:
    """The block of a data set's images that belongs to this rank, in the order of the source.

    transform: PIL image -> float32 [3, H, W]. If it has a method `pixels` (PIL image -> uint8 [3, H, W]), this is used instead,
    and the caller normalises. workers: threads that decode. cache_bytes: decoded images are kept for the next pass up to this
    size in total; with 0, every pass decodes them again.
    """

    def __init__(self, config: DatasetConfig, transform: Transform, *, workers: int, cache_bytes: int) -> None:
        self.config = config
        self._source = open_source(config)
        self.total = len(self._source)
        self._to_tensor = getattr(transform, "pixels", transform)
        self._label_keys = sorted({task.label for task in config.tasks if task.label is not None})
        self._workers = max(1, workers)
        self._room = cache_bytes
        self._cache: dict[int, Tensor] = {}
        self._records: dict[int, Record] = {}
        self._bad: dict[int, dict[str, str]] = {}
        self._gathered: Samples | None = None  # of the last pass, or given to `adopt`
        self._transform = transform

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that determines pixels, captions and labels: the samples, how they are read, and the transform."""
        pixels = transform_fingerprint(self._transform)
        parts = [self._source.fingerprint(), self.config.captions, self.config.image_keys, self._label_keys, pixels]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def batch_size(self, wanted: int) -> int:
        """Return a batch size of at most `wanted` that leaves enough batches: one that warms up, and TIMED_BATCHES after it."""
        return min(wanted, max(1, -(-largest_block(self.total) // (TIMED_BATCHES + 1))))

    def batches(self, size: int, ahead: int) -> Iterator[Tensor]:
        """Yield the images of this rank in batches [b, 3, H, W], uint8 or float32, with b <= size.

        Every rank yields the same number of batches. An empty batch is torch.empty(0). ahead: how many batches are decoded while
        the caller works on the current one.
        """
        self._gathered = None
        mine = block(self.total)
        starts = range(0, largest_block(self.total), size)
        with ThreadPoolExecutor(self._workers) as pool:
            waiting: deque[list[Future[Tensor | None]]] = deque()
            for start in starts:
                waiting.append([pool.submit(self._image, i) for i in mine[start : start + size]])
                if len(waiting) > ahead:
                    yield _stack([future.result() for future in waiting.popleft()])
            while waiting:
                yield _stack([future.result() for future in waiting.popleft()])

    def pick(self, numbers: Sequence[int]) -> tuple[Tensor, list[Record]]:
        """Return (images [b, 3, H, W], their records) of the samples with these numbers, on this rank alone.

        Samples that cannot be read are left out.
        """
        with ThreadPoolExecutor(self._workers) as pool:
            images = list(pool.map(self._image, numbers))
        return _stack(images), [self._records[i] for i, image in zip(numbers, images, strict=True) if image is not None]

    def bad_samples(self) -> list[dict[str, str]]:
        """Return the samples that this rank could not read so far, as dicts with dataset, shard, key and reason."""
        return [entry for _, entry in sorted(self._bad.items())]

    def gather(self) -> Samples:
        """Return the records and the bad samples of all ranks, in order.

        All ranks must call this, after a pass over the batches. Raises UserError if no sample can be read.
        """
        if self._gathered is not None:
            return self._gathered
        mine = (sorted(self._records.items()), sorted(self._bad.items()))
        parts = gather_objects(mine)
        records = [record for part, _ in parts for _, record in part]
        bad = [entry for _, part in parts for _, entry in part]
        if not records:
            raise UserError(f"data set {self.config.name}: none of its {self.total} samples can be read; first: {bad[0]}")
        self._gathered = records, bad
        return records, bad

    def adopt(self, records: list[Record], bad: list[dict[str, str]]) -> None:
        """Set the result of `gather` to that of an earlier evaluation, whose embeddings were kept, so that no pass is needed."""
        self._gathered = records, bad

    def _image(self, index: int) -> Tensor | None:
        """Return the image of sample `index`, or None if it cannot be read.

        This runs in threads without a lock, because only one thread at a time handles an index.
        """
        if index in self._bad:
            return None
        if index in self._cache:
            return self._cache[index]
        try:
            item = self._source.item(index, self._label_keys)
        except BadSample as bad:
            self._records.pop(index, None)  # an earlier pass may have been able to read it
            self._bad[index] = {"dataset": self.config.name, **bad.as_dict()}
            log.warning("data set %s: bad sample, not counted: %s", self.config.name, bad)
            return None
        image = self._to_tensor(item.image)
        self._records[index] = Record(item.name, item.captions, item.labels, index)
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._cache[index] = image
        return image


def transform_fingerprint(transform: Transform) -> str:
    """Return a hash of a transform's repr and of its output for two fixed images.

    The repr alone is not enough, because that of a function is only its name.
    """
    digest = hashlib.sha256(repr_without_addresses(transform).encode())
    noise = np.random.default_rng(0).bit_generator
    for height, width in ((331, 257), (48, 96)):
        pixels = noise.random_raw(3 * height * width).astype(np.uint8).reshape(height, width, 3)
        made = transform(Image.fromarray(pixels))
        digest.update(f"{made.dtype} {list(made.shape)}".encode())
        digest.update(tensor_bytes(made))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of the elements of a tensor, in the order of the elements."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def repr_without_addresses(thing: object) -> str:
    """Return the repr of an object without memory addresses, so that it is the same in every process."""
    return _ADDRESS.sub("", repr(thing))


def _stack(images: Sequence[Tensor | None]) -> Tensor:
    good = [image for image in images if image is not None]
    return torch.stack(good) if good else torch.empty(0)
