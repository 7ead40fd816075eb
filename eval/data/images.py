"""The images of a data set: this rank's block, decoded once by threads, kept as uint8 while that is cheap.

A sample that cannot be read is counted and named, never replaced: it is absent from n on every rank.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from flexiclip_eval.data.opening import open_source
from flexiclip_eval.data.shards import Label
from flexiclip_eval.suites.dataset import DatasetConfig
from PIL import Image
from torch import Tensor

from flexiclip.data.samples import BadSample
from flexiclip.distributed import block, gather_objects, largest_block
from flexiclip.errors import UserError

log = logging.getLogger("flexiclip.eval")

TIMED_BATCHES = 3  # at least, for a speed that one hiccup of the machine does not decide
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True)
class Record:
    """What the metrics need of an image: its texts, and its label for each classification task by the task's `label` key."""

    sample: str  # shard and key, for messages
    captions: tuple[str, ...]
    labels: dict[str, Label]
    number: int  # of the sample in its source, by which the report reads it anew


class ImageBlock:
    """This rank's images of a data set, in the order of the shards.

    transform: PIL -> float32 [3, H, W]; when it has `pixels` (PIL -> uint8) that is used instead, and the caller normalises.
    cache_bytes: images are kept up to this size for the next pass; 0 decodes anew.
    """

    def __init__(self, config: DatasetConfig, transform: Callable[[Any], Tensor], *, workers: int, cache_bytes: int) -> None:
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
        self._gathered: tuple[list[Record], list[dict[str, str]]] | None = None  # of the last pass, or adopted
        self._transform = transform

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what decides pixels, captions and labels: the samples, how they are read, and the transform."""
        pixels = transform_fingerprint(self._transform)
        parts = [self._source.fingerprint(), self.config.captions, self.config.image_keys, self._label_keys, pixels]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def batch_size(self, wanted: int) -> int:
        """At most `wanted`, and small enough for TIMED_BATCHES and the one before them that warms up."""
        return min(wanted, max(1, -(-largest_block(self.total) // (TIMED_BATCHES + 1))))

    def batches(self, size: int, ahead: int) -> Iterator[Tensor]:
        """Images [b, 3, H, W], uint8 or float32, b <= size, with as many batches on every rank, so b may be 0.

        ahead: batches decoded while the caller works on this one.
        """
        self._gathered = None
        mine = block(self.total)
        starts = range(0, largest_block(self.total), size)
        with ThreadPoolExecutor(self._workers) as pool:
            waiting: deque[list[Any]] = deque()
            for start in starts:
                waiting.append([pool.submit(self._image, i) for i in mine[start : start + size]])
                if len(waiting) > ahead:
                    yield _stack([future.result() for future in waiting.popleft()])
            while waiting:
                yield _stack([future.result() for future in waiting.popleft()])

    def pick(self, numbers: Sequence[int]) -> tuple[Tensor, list[Record]]:
        """(images [b, 3, H, W], their records) of these samples, for this rank alone; those that cannot be read are left out."""
        with ThreadPoolExecutor(self._workers) as pool:
            images = list(pool.map(self._image, numbers))
        return _stack(images), [self._records[i] for i, image in zip(numbers, images, strict=True) if image is not None]

    def bad_samples(self) -> list[dict[str, str]]:
        """What this rank could not read so far: dataset, shard, key, reason."""
        return [entry for _, entry in sorted(self._bad.items())]

    def gather(self) -> tuple[list[Record], list[dict[str, str]]]:
        """The records of all ranks in order, and the bad samples (dataset, shard, key, reason). Call after a pass."""
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
        """Take what `gather` gave after a pass of an earlier evaluation, in the place of a pass."""
        self._gathered = records, bad

    def _image(self, index: int) -> Tensor | None:
        """The image of sample `index`, or None when it is broken. Runs in threads: each index is touched by one of them."""
        if index in self._bad:
            return None
        if index in self._cache:
            return self._cache[index]
        try:
            item = self._source.item(index, self._label_keys)
        except BadSample as bad:
            self._records.pop(index, None)  # it was good in an earlier pass
            self._bad[index] = {"dataset": self.config.name, **bad.as_dict()}
            log.warning("data set %s: bad sample, not counted: %s", self.config.name, bad)
            return None
        image = self._to_tensor(item.image)
        self._records[index] = Record(item.name, item.captions, item.labels, index)
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._cache[index] = image
        return image


def transform_fingerprint(transform: Callable[[Any], Tensor]) -> str:
    """What a transform says of itself, and a hash of what it makes of two pictures: a function says no more than its name."""
    digest = hashlib.sha256(repr_without_addresses(transform).encode())
    noise = np.random.default_rng(0).bit_generator
    for height, width in ((331, 257), (48, 96)):
        pixels = noise.random_raw(3 * height * width).astype(np.uint8).reshape(height, width, 3)
        made = transform(Image.fromarray(pixels))
        digest.update(f"{made.dtype} {list(made.shape)}".encode())
        digest.update(made.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def repr_without_addresses(thing: object) -> str:
    """What another library's transform or module says of itself, the same in every process."""
    return _ADDRESS.sub("", repr(thing))


def _stack(images: Sequence[Tensor | None]) -> Tensor:
    good = [image for image in images if image is not None]
    return torch.stack(good) if good else torch.empty(0)
