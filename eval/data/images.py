"""The images of a data set: this rank's block, decoded once by threads, kept as uint8 while that is cheap.

A sample that cannot be read is counted and named, never replaced: it is absent from n on every rank.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flexiclip.data.samples import BadSample, Sample, open_samples
from flexiclip.data.shards import expand_shards
from flexiclip.errors import UserError

from ..embeddings.ranks import block, gather_objects, largest_block
from ..suite import DatasetConfig, TaskConfig, check_classes

log = logging.getLogger("flexiclip.eval")

Label = str | int | None

_DIGITS = 18  # of a label that is a number; int() refuses some thousand of them
TIMED_BATCHES = 3  # at least, for a speed that one hiccup of the machine does not decide


@dataclass(frozen=True)
class Record:
    """What the metrics need of an image: its texts, and its label for each classification task by the task's `label` key."""

    sample: str  # shard and key, for messages
    captions: tuple[str, ...]
    labels: dict[str, Label]


class ImageBlock:
    """This rank's images of a data set, in the order of the shards.

    transform: PIL -> float32 [3, H, W]; when it has `pixels` (PIL -> uint8) that is used instead, and the caller normalises.
    cache_bytes: images are kept up to this size for the next pass; 0 decodes anew.
    """

    def __init__(self, config: DatasetConfig, transform: Callable[[Any], Tensor], *, workers: int, cache_bytes: int) -> None:
        self.config = config
        captions = config.captions if config.has_retrieval else ()
        self.store = open_samples(expand_shards(config.shards), config.image_keys, captions, index_cache=config.index_cache)
        self.total = len(self.store)
        if self.total == 0:
            raise UserError(f"data set {config.name}: the shards {config.shards} hold no sample")
        self._to_tensor = getattr(transform, "pixels", transform)
        self._label_keys = sorted({task.label for task in config.tasks if task.label is not None})
        self._workers = max(1, workers)
        self._room = cache_bytes
        self._cache: dict[int, Tensor] = {}
        self._records: dict[int, Record] = {}
        self._bad: dict[int, dict[str, str]] = {}

    def batch_size(self, wanted: int) -> int:
        """At most `wanted`, and small enough for TIMED_BATCHES and the one before them that warms up."""
        return min(wanted, max(1, -(-largest_block(self.total) // (TIMED_BATCHES + 1))))

    def batches(self, size: int, ahead: int) -> Iterator[Tensor]:
        """Images [b, 3, H, W], uint8 or float32, b <= size, with as many batches on every rank, so b may be 0.

        ahead: batches decoded while the caller works on this one. For a CPU 0: threads at work would falsify the speeds measured.
        """
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

    def gather(self) -> tuple[list[Record], list[dict[str, str]]]:
        """The records of all ranks in order, and the bad samples (dataset, shard, key, reason). Call after a pass."""
        mine = (sorted(self._records.items()), sorted(self._bad.items()))
        parts = gather_objects(mine)
        records = [record for part, _ in parts for _, record in part]
        bad = [entry for _, part in parts for _, entry in part]
        if not records:
            raise UserError(f"data set {self.config.name}: none of its {self.total} samples can be read; first: {bad[0]}")
        return records, bad

    def _image(self, index: int) -> Tensor | None:
        """The image of sample `index`, or None when it is broken. Runs in threads: each index is touched by one of them."""
        if index in self._bad:
            return None
        if index in self._cache:
            return self._cache[index]
        try:
            sample = self.store[index]
            labels = {key: self._label(index, sample, key) for key in self._label_keys}
        except BadSample as bad:
            self._bad[index] = {"dataset": self.config.name, **bad.as_dict()}
            log.warning("data set %s: bad sample, not counted: %s", self.config.name, bad)
            return None
        image = self._to_tensor(sample.image)
        self._records[index] = Record(sample.name, sample.captions, labels)
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._cache[index] = image
        return image

    def _label(self, index: int, sample: Sample, key: str) -> Label:
        """The label under `json:FIELD` (`json:a.b` descends), or in a member: a name, or a number. None when there is none."""
        if not key.startswith("json:"):
            raw = self.store.member(*self.store.locate(index), key)
            text = "" if raw is None else raw.decode("utf-8", "replace").strip()
            return int(text) if text.isdecimal() and len(text) <= _DIGITS else text or None
        value: Any = sample.meta
        for part in key.removeprefix("json:").split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def resolve_labels(task: TaskConfig, records: Sequence[Record]) -> tuple[list[str], list[str], Tensor]:
    """(classes, their words in prompts, label of each record int64 [N]) of a classification task.

    Classes come from the suite, or are the labels found, sorted. UserError names the sample whose label is missing or unknown.
    """
    assert task.label is not None, "TaskConfig demands a label for classification"
    where = f"task {task.name or task.kind}"
    labels = [record.labels[task.label] for record in records]
    for record, label in zip(records, labels, strict=True):
        if label is None:
            raise UserError(f"{where}: {record.sample} has no {task.label}; name another label in the suite")
    words = task.words or {name: name for name in sorted({str(label) for label in labels})}
    classes = list(words)
    check_classes(classes, where)
    number: dict[Label, int] = {name: i for i, name in enumerate(classes)}
    if task.classes is not None:
        number |= {i: i for i in range(len(classes))}  # a list in the suite gives numbers a meaning
    else:
        number |= {label: number[str(label)] for label in labels}
    for record, label in zip(records, labels, strict=True):
        if label not in number:
            raise UserError(f"{where}: the label {label!r} of {record.sample} is not among its {len(classes)} classes")
    return classes, list(words.values()), torch.tensor([number[label] for label in labels], dtype=torch.int64)


def _stack(images: Sequence[Tensor | None]) -> Tensor:
    good = [image for image in images if image is not None]
    return torch.stack(good) if good else torch.empty(0)
